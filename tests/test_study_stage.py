"""When a stage is done: by the contents of what it reads, its settings, and what it left."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from repsim.errors import UserError
from repsim.files import host, replacing
from repsim.study import stage as module
from repsim.study.stage import Records, Stage, closure, ordered
from repsim.study.temporary import _BESIDE, remove_temporary


def a_stage(name: str, needs: tuple[str, ...] = (), **settings: object) -> Stage:
    return Stage(name, name.partition("-")[0], needs, settings, (f"{name}.txt",), f"make {name}")


class Folder:
    """Stages whose work is to write their inputs' texts and their setting."""

    def __init__(self, folder: Path, *stages: Stage) -> None:
        self.records = Records(folder, ordered(stages))
        self.made: list[str] = []

    def text(self, stage: Stage) -> str:
        inputs = [(self.records.folder / f"{n}.txt").read_text() for n in stage.needs]
        return "+".join([*inputs, str(stage.settings.get("say", stage.name))])

    def run(self) -> list[str]:
        self.made = []
        for stage in self.records.stages.values():
            if self.records.done(stage):
                continue
            key = self.records.key(stage)
            assert key is not None
            (self.records.folder / stage.outputs[0]).write_text(self.text(stage))
            self.records.write(stage, key, 0.0, 0.5, 0.25, {"extra": 1})
            self.made.append(stage.name)
        return self.made


TRAIN, EVALUATE, COMPARE = (
    a_stage("train-a", say="a"),
    a_stage("evaluate-a", ("train-a",)),
    a_stage("compare", ("train-a",)),
)
REPORT = a_stage("report", ("evaluate-a", "compare"))
ALL = (TRAIN, EVALUATE, COMPARE, REPORT)
NAMES = [stage.name for stage in ALL]


@pytest.fixture
def done(tmp_path: Path) -> Path:
    assert Folder(tmp_path, *ALL).run() == NAMES
    return tmp_path


def test_what_is_done_is_kept(done: Path) -> None:
    folder = Folder(done, *ALL)
    assert folder.run() == []
    record = folder.records.read(COMPARE)
    assert record is not None
    assert (record["command"], record["seconds"], record["extra"]) == ("make compare", 0.5, 1)
    assert set(record["outputs"]) == {"compare.txt"}


def test_a_changed_setting_makes_what_depends_on_it(done: Path) -> None:
    changed = replace(COMPARE, settings={"samples": 3})
    assert Folder(done, TRAIN, EVALUATE, changed, REPORT).run() == ["compare"]
    # what it left is the same, so the report stands; another content goes on to it
    other = replace(COMPARE, settings={"say": "other"})
    assert Folder(done, TRAIN, EVALUATE, other, REPORT).run() == ["compare", "report"]
    assert Folder(done, *ALL).run() == ["compare", "report"]  # back again
    early = replace(EVALUATE, settings={"say": "other"})  # not the last of what a report reads
    assert Folder(done, TRAIN, early, COMPARE, REPORT).run() == ["evaluate-a", "report"]
    first = replace(TRAIN, settings={"say": "b"})
    assert Folder(done, first, EVALUATE, COMPARE, REPORT).run() == NAMES


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_what_was_damaged_is_made_again(done: Path, damage: str) -> None:
    path = done / "compare.txt"
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("x" if damage == "changed" else "")
    assert Folder(done, *ALL).run() == ["compare"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"key": 1}'])
def test_a_record_that_cannot_be_read_is_none(done: Path, content: str) -> None:
    (done / "stages" / "evaluate-a.json").write_text(content)
    assert Folder(done, *ALL).run() == ["evaluate-a"]


def test_a_new_format_makes_the_stages_of_its_kind(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.FORMATS, "evaluate", 99)
    assert Folder(done, *ALL).run() == ["evaluate-a"]


def test_a_stage_that_is_forgotten_is_not_done(done: Path) -> None:
    folder = Folder(done, *ALL)
    folder.records.forget(TRAIN)
    assert not folder.records.done(TRAIN)
    assert folder.records.key(COMPARE) is None  # what it needs is not done
    assert not folder.records.done(REPORT)
    assert folder.run() == ["train-a"]


def test_an_output_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    records = Records(tmp_path, ordered([TRAIN]))
    with pytest.raises(UserError, match=r"stage train-a was expected to leave train-a\.txt"):
        records.write(TRAIN, "key", 0.0, 0.0, 0.0, {})
    assert records.read(TRAIN) is None


def test_order_and_closure() -> None:
    stages = ordered(ALL)
    assert closure(stages, "report") == NAMES
    assert closure(stages, "compare") == ["train-a", "compare"]
    assert closure(stages, "train") == ["train-a"]
    assert closure(stages, "evaluate-a") == ["train-a", "evaluate-a"]
    with pytest.raises(UserError, match="--stop-after expects one of train, evaluate, compare"):
        closure(stages, "plot")
    with pytest.raises(ValueError, match="out of order"):
        ordered([EVALUATE, TRAIN])
    with pytest.raises(ValueError, match="out of order"):
        ordered([TRAIN, TRAIN])


def test_half_written_files_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    """Of this machine's at once, of others after a day; never those of one that runs."""
    (tmp_path / "sub").mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    here, alive = f"{gone.pid}@{host()}", f"{os.getppid()}@{host()}"
    half = [tmp_path / f".a.pt.{here}.tmp.pt", tmp_path / "sub" / f".b.json.{here}.tmp.json",
            tmp_path / f".c.png.{here}.part", tmp_path / f".own.pt.{os.getpid()}@{host()}.tmp.pt",
            tmp_path / ".old.pt.1@elsewhere.tmp.pt", tmp_path / ".older.pt.1.tmp.pt"]  # fmt: skip
    kept = [tmp_path / "a.pt", tmp_path / ".a.tmp", tmp_path / ".lock", tmp_path / "a.1.tmp.pt",
            tmp_path / f".d.pt.{alive}.tmp.pt", tmp_path / ".e.pt.1@elsewhere.tmp.pt"]  # fmt: skip
    for path in [*half, *kept]:
        path.write_text("x")
    for path in half[-2:]:
        os.utime(path, (0, 0))
    assert sorted(remove_temporary(tmp_path)) == sorted(half)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in half)


def test_a_file_that_is_being_written_is_known_for_whose_it_is(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.pt") as beside:
        beside.write_text("half")
        named = _BESIDE.fullmatch(beside.name)
        assert named is not None
        assert (int(named["pid"]), named["host"]) == (os.getpid(), host())
