"""The commands that a study's files name are typed in its folder, and work there."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch
from study_small import PRESET, carry_on, preset

from repsim.checkpoint import read_plain
from repsim.cli import main
from repsim.errors import UserError
from repsim.study.api import prepare
from repsim.study.command import Wish, command_of
from repsim.study.settings import load_preset
from repsim.study.study import Machine, read_study

ATTACK = """
def mine(model, inputs, labels, *, eps=0.1):
    return (inputs + eps).clamp(0, 1)
"""


def call(command: str) -> int:
    words = shlex.split(command)
    assert words[0] == "repsim"
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--device", "cpu", "--jobs", "1"])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_command_of_the_page_works_in_the_folder(
    tmp_path: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A preset's file, own networks and own code come along; nothing is made again by it."""
    for folder in ("there", "weights", "code"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    Path("code/attack.py").write_text(ATTACK)
    file = preset(tmp_path / "there", PRESET.replace('attack = "pgd,steps=2"',
                                                     'attack = "code/attack.py:mine"'))  # fmt: skip
    content = read_plain(checkpoints["at"])
    torch.save(content["state_dict"], "weights/w.pth")
    shutil.copy(checkpoints["st"], "weights/st.pt")
    models = Path("there/own.toml")
    models.write_text(
        "preset = true\n[[network]]\nname = 'a'\ncheckpoint = '../weights/st.pt'\nscheme = 'sl'\n"
        "scenario = 'st'\nseed = 7\n[[network]]\nname = 'b'\ncheckpoint = '../weights/w.pth'\n"
        f"scheme = 'sl'\nscenario = 'at'\neps = '0.1'\narch = 'resnet8'\nmean = {content['mean']}\n"
        f"std = {content['std']}\n"
    )
    wish = Wish(str(file), Path("study"), models=models, settings=["evaluate.samples=20"],
                precision="float32")  # fmt: skip
    names = ["train-a", "train-b", "train-untrained-0", "evaluate-a", "evaluate-b"]
    for name in names:
        carry_on(prepare(wish, Machine(device="cpu"), stop_after=name))
    study = read_study(tmp_path / "study")
    assert study["command"] == (
        "repsim reproduce universal --preset tiny.toml --out . --models models.toml "
        "--set evaluate.samples=20 --precision float32"
    )
    commands = {row["name"]: row["command"] for row in study["stages"]}
    shutil.move("study", "study-elsewhere")  # as deep: own checkpoints are not copied
    monkeypatch.chdir(tmp_path / "study-elsewhere")
    before = {path: path.stat().st_mtime_ns for path in Path("checkpoints").iterdir()}
    for name in names:
        assert commands[name] == f"{study['command']} --stop-after {name}"
        assert call(commands[name]) == 0
    assert "0 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_study(Path())["command"] == study["command"]
    own = prepare(Wish("tiny.toml", Path(), models=Path("models.toml")), Machine(device="cpu"))
    assert [one.checkpoint for one in own.study.networks if one.checkpoint] == [
        "../weights/st.pt", "../weights/w.pth",
    ]  # fmt: skip


def command(wish: Wish, machine: Machine | None = None) -> str:
    return command_of(wish, load_preset(wish.preset), machine or Machine())


def test_commands_say_the_preset_and_nothing_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPSIM_DATA", raising=False)
    small = "repsim reproduce universal --preset small --out ."
    assert command(Wish("small")) == small
    assert Wish("small").place == tmp_path / "universal-small"
    assert (
        command(Wish("small"), Machine(data_root=Path("/data"), checkpoints=(tmp_path,))) == small
    )
    wish = Wish("small", schemes=("sl", "cl"), seeds=1, data="cifar100", settings=["margin=0.1"])
    assert command(wish) == (f"{small} --schemes sl,cl --seeds 1 --data cifar100 --set margin=0.1")
    Path("data").mkdir()  # the default place, seen from the study's folder
    assert command(Wish("small")) == f"{small} --data-root ../data"
    assert command(Wish("demo")) == "repsim reproduce universal --preset demo --out ."
    assert command(Wish("small", Path("/somewhere/else"))) == small
    monkeypatch.setenv("REPSIM_DATA", "/data")
    assert command(Wish("small")) == small
    (tmp_path / "models.toml").write_text(PRESET)
    with pytest.raises(UserError, match=r"another name than models\.toml"):
        command(Wish("models.toml", models=Path("own.toml")))


def test_a_folder_of_data_is_seen_from_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()
    settings = replace(load_preset("small"), data="mnist")
    wish = Wish("small", data="mnist")
    assert command_of(wish, settings, Machine()).endswith("--data ../mnist")
    assert settings.data_name == "mnist"
    assert replace(settings, data="../x/mnist").data_name == "mnist"
    assert replace(settings, data="mine.py:stripes").data_name == "stripes"
