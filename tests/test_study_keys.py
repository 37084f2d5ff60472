"""What a stage's hash holds, and what its record says of where it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from study_small import PRESET, carry_on, preset, ready

import repsim
from repsim.attacks.pgd import pgd
from repsim.study import record
from repsim.study.graph import stages_of
from repsim.study.record import places, write_study
from repsim.study.study import Study, read_study

ATTACK = """
def attack(model, inputs, labels, *, eps=0.1):
    return (inputs + {sign} * eps).clamp(0, 1)
"""
NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.{act}(), nn.Flatten())
        self.head = nn.Linear(144, classes)

    def forward(self, images):
        return self.head(self.body(images))
"""


def keys(study: Study) -> dict[str, str]:
    """Of all stages, what decides them beside their inputs."""
    return {name: json.dumps(dict(stage.settings)) for name, stage in stages_of(study).items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name.partition("-")[0] for name in before if before[name] != after[name]}


def test_an_attack_of_the_users_own_is_known_by_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Path("mine.py")
    mine.write_text(ATTACK.format(sign="+1"))
    own = ["compare.attack=mine.py:attack", "evaluate.attacks=pgd"]
    one = ready(tmp_path / "study", preset(tmp_path), own).study
    before = keys(one)
    mine.write_text(ATTACK.format(sign="-1"))
    assert changed(before, keys(one)) == {"shared", "compare", "within", "probe"}
    both = ["compare.attack=pgd", "evaluate.attacks=mine.py:attack"]
    one = ready(tmp_path / "study", preset(tmp_path), both).study
    before = keys(one)
    mine.write_text(ATTACK.format(sign="+1"))
    assert changed(before, keys(one)) == {"evaluate"}


def test_other_defaults_of_an_attack_make_its_stages_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that was typed is the same."""
    text = PRESET.replace("pgd,steps=2", "pgd")
    one = ready(tmp_path / "study", preset(tmp_path, text)).study
    before = keys(one)
    with monkeypatch.context() as patch:
        patch.setitem(pgd.__kwdefaults__, "steps", 7)
        assert changed(before, keys(one)) >= {"evaluate", "shared", "compare", "within", "probe"}
    monkeypatch.setattr(Study, "eps", 0.2)  # as of a data set of another default
    assert changed(before, keys(one)) >= {"evaluate", "shared", "compare", "within", "probe"}


def test_a_file_that_an_attack_names_counts(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    surrogate = tmp_path / "other.pt"
    surrogate.write_bytes(checkpoints["st"].read_bytes())
    attacks = [f"evaluate.attacks=pgd,surrogate={surrogate},as=transfer"]
    one = ready(tmp_path / "study", preset(tmp_path), attacks).study
    before = keys(one)
    surrogate.write_bytes(checkpoints["at"].read_bytes())
    assert changed(before, keys(one)) == {"evaluate"}


def test_an_architecture_of_the_users_own_is_known_by_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints do not hold it: the same weights are another network. One is trained anew."""
    monkeypatch.chdir(tmp_path)
    mine = Path("mine.py")
    mine.write_text(NET.format(act="ReLU"))
    text = PRESET.replace("resnet8", "mine.py:Net").replace("epochs = 2", "epochs = 1")
    file = preset(tmp_path, text.replace("[encoder]", "[encoder]\nweight_decay = 0.0"))
    trained = ["train-sl-st-0", "train-sl-at-0", "train-untrained-0"]
    assert carry_on(ready(tmp_path / "study", file, stop_after="train")) == trained
    assert carry_on(ready(tmp_path / "study", file, stop_after="train")) == []
    one = ready(tmp_path / "study", file).study
    before = keys(one)
    mine.write_text(NET.format(act="Tanh"))
    seen = {"train", "evaluate", "shared", "compare", "within", "probe"}
    assert changed(before, keys(one)) == seen
    weights = (tmp_path / "study/checkpoints/sl-st-0.pt").read_bytes()
    assert carry_on(ready(tmp_path / "study", file, stop_after="train")) == trained
    assert (tmp_path / "study/checkpoints/sl-st-0.pt").read_bytes() != weights
    # And elsewhere a ready one is taken only where it is of this code.
    ready_ones = (tmp_path / "study/checkpoints",)
    for act, source in (("Tanh", "checkpoints"), ("ReLU", "trained")):
        mine.write_text(NET.format(act=act))
        again = ready(tmp_path / act, file, stop_after="train-sl-st-0", checkpoints=ready_ones)
        carry_on(again)
        assert read_study(tmp_path / act)["networks"][0]["source"] == source


def test_a_training_by_other_code_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repsim.study.ready import note_sources

    out = tmp_path / "a.pt"
    resume = tmp_path / "a.pt.resume"
    note_sources(out, {"mine.py:Net": "1"})
    resume.write_text("half")
    note_sources(out, {"mine.py:Net": "1"})
    assert resume.exists()
    note_sources(out, {"mine.py:Net": "2"})
    assert not resume.exists()
    note_sources(out, {})
    assert list(tmp_path.iterdir()) == []


def test_records_say_where_and_by_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second part of a study on another machine does not speak for the first."""
    folder, file = tmp_path / "study", preset(tmp_path)
    carry_on(ready(folder, file, stop_after="train-untrained-0"))
    here = read_study(folder)
    monkeypatch.setattr(
        record, "hardware", lambda device: {"processor": "other", "cores": 64, "gpu": "a GPU"}
    )
    monkeypatch.setattr(record, "versions", lambda: {"repsim": "9", "torch": "8"})
    prepared = ready(folder, file, stop_after="evaluate-untrained-0")
    carry_on(prepared)
    one = prepared.records.read(prepared.records.stages["train-untrained-0"])
    two = prepared.records.read(prepared.records.stages["evaluate-untrained-0"])
    assert one is not None
    assert two is not None
    assert one["repsim_version"] == repsim.__version__
    assert (one["device"], one["precision"]) == ("cpu", "float32")
    assert one["versions"]["torch"] == str(torch.__version__)
    assert two["hardware"]["processor"] == "other"
    study = read_study(folder)
    made = [(one["hardware"]["processor"], one["stages"]) for one in study["made_on"]]
    assert made == [(here["hardware"]["processor"], ["train-untrained-0"]),
                    ("other", ["evaluate-untrained-0"])]  # fmt: skip
    assert study["hardware"]["processor"] == [here["hardware"]["processor"], "other"]
    assert study["hardware"]["gpu"] == "a GPU"
    assert study["versions"]["repsim"] == [repsim.__version__, "9"]
    row = next(row for row in study["stages"] if row["name"] == "train-untrained-0")
    assert (row["device"], row["precision"]) == ("cpu", "float32")


def test_places_are_told_once_each() -> None:
    here: dict[str, Any] = {
        "hardware": {"cores": 2}, "versions": {"torch": "2"}, "device": "cpu",
    }  # fmt: skip
    stages: list[dict[str, Any]] = [{"name": "a", "precision": "float32", **here}, {"name": "old"},
              {"name": "b", "precision": "bf16", **here},
              {"name": "c", "precision": "float32", **here}]  # fmt: skip
    assert [(one["precision"], one["stages"]) for one in places(stages)] == [
        ("float32", ["a", "c"]), ("bf16", ["b"]),
    ]  # fmt: skip


def test_the_first_process_to_write_speaks_for_itself(tmp_path: Path) -> None:
    prepared = ready(tmp_path / "study", preset(tmp_path))
    prepared.study.folder.mkdir()
    write_study(replace(prepared.study), prepared.records)
    study = read_study(tmp_path / "study")
    assert study["made_on"] == []
    assert study["versions"]["repsim"] == repsim.__version__
