"""`repsim reproduce`: what it prints before, while and after it works, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study_small import preset

from repsim.cli import main
from repsim.cli.reproduce import _command
from repsim.study import api
from repsim.study.estimate import show_time
from repsim.study.study import read_study


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "universal", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    return ["--preset", str(preset(tmp_path)), "--out", str(tmp_path / "study"), "--device", "cpu"]


def test_dry_run_says_what_each_stage_will_take(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps are measured once and kept; nothing else is written."""
    out = tmp_path / "estimate.json"
    assert call(*given, "--dry-run", "--jobs", "2", "--json", str(out)) == 0
    printed = capsys.readouterr()
    assert "measuring resnet8" in printed.err
    assert "16 of 16 stages to do" in printed.out
    assert "with 2 at a time" in printed.out
    found = json.loads(out.read_text())
    rows = {row["name"]: row for row in found["stages"]}
    assert list(rows)[:3] == ["train-sl-st-0", "train-sl-at-0", "train-untrained-0"]
    assert list(rows)[-1] == "report"
    assert all(row["seconds"] >= 0 and row["bytes"] > 0 for row in rows.values())
    assert "2 epochs of 192 at" in rows["train-sl-st-0"]["about"]
    assert "60 × 60 layers, 50 images" in rows["compare"]["about"]
    # Adversarial training with one step costs more than standard training.
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in rows.values()), abs=1)
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["steps.json"]
    kept = (tmp_path / "study/steps.json").read_text()
    assert call(*given, "--dry-run", "--json", str(out)) == 0
    assert "measuring" not in capsys.readouterr().err
    assert (tmp_path / "study/steps.json").read_text() == kept
    assert json.loads(out.read_text())["stages"] == found["stages"]


def test_runs_and_says_what_is_done(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*given, "--jobs", "1", "--stop-after", "train-sl-st-0") == 0
    printed = capsys.readouterr()
    assert "1 stages, 1 to do" in printed.err
    assert "train-sl-st-0: " in printed.err
    study = read_study(tmp_path / "study")
    assert study["preset"] == "tiny"
    assert study["stages"][0]["status"] == "done"
    assert study["stages"][0]["command"].endswith("--stop-after train-sl-st-0")
    assert call(*given, "--jobs", "1", "--stop-after", "train-sl-st-0", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert call(*given, "--dry-run", "--json", str(tmp_path / "e.json"), "--quiet") == 0
    rows = json.loads((tmp_path / "e.json").read_text())["stages"]
    assert [row["status"] for row in rows[:3]] == ["done", "to do", "to do"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "big"], "--preset expects one of demo, small, gpu, paper"),
        (["--stop-after", "plot"], "--stop-after expects one of train, evaluate"),
        (["--models", "none.toml"], "--models expects a TOML file; there is no file none.toml"),
        (["--schemes", "rocl"], "--schemes expects some of cl, scl, sl"),
        (["--set", "compare.sample=3"], "near: compare.samples"),
        (["--set", "compare.shared=x"], "compare.shared expects networks of the study"),
        (["--set", "compare.attack=pdg"], "--attack expects one of"),
        (["--set", "compare.attack=noise"], "compare.attack expects an attack on the network"),
        (["--set", "compare.attack=pgd,as=shared"], "of another name than noise and shared"),
        (["--set", "compare.samples=3"], "compare.samples expects at least 4; got 3"),
        (["--set", "evaluate.attacks=pgd;pgd,steps=3"], "name them apart with as=NAME"),
        (["--set", "probe.solver=svm"], "solver"),
        (["--set", "probe.train_on=pgd"], "probe.train_on expects clean among"),
        (["--set", "probe.options.rate=3"], "probe.options: "),
        (["--data", "digit"], "--data"),
        (["--seeds", "0"], "--seeds"),
        (["--processes", "2"], "are for --launcher slurm"),
        (["--slurm", "partition=gpu"], "are for --launcher slurm"),
        (["--checkpoints", "nowhere"], "--checkpoints expects a folder"),
        (["--launcher", "slurm"], "expects Slurm's sbatch"),
        (["--json", "nowhere/a.json"], "expected an existing folder"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call("--out", str(tmp_path / "study"), "--device", "cpu", *arguments)
    printed = capsys.readouterr()
    assert code == 2
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.glob("study/checkpoints/*"))


def test_the_recorded_command_is_without_this_machine() -> None:
    given = [
        "reproduce", "universal", "--preset", "small", "--out", "my study", "--data-root", "/data",
        "--jobs", "2", "--set", "margin=0.05", "--json=/tmp/a.json", "--quiet",
        "--stop-after", "compare", "--checkpoints=/here", "--dry-run",
    ]  # fmt: skip
    assert _command(given) == (
        "repsim reproduce universal --preset small --out 'my study' --set margin=0.05"
    )
    assert _command(["-m", "pytest"]) == "repsim reproduce universal"


def test_times_as_they_are_said() -> None:
    shown = {0.4: "0 s", 99: "99 s", 120: "2 min", 5940: "99 min", 6060: "1 h 41 min",
             19200: "5 h 20 min", 400000: "111 h"}  # fmt: skip
    assert {seconds: show_time(seconds) for seconds in shown} == shown


def test_claims_nothing_for_a_dry_run(given: list[str], tmp_path: Path) -> None:
    with api.claimed(tmp_path / "study"):
        assert call(*given, "--dry-run", "--quiet", "--stop-after", "train-untrained-0") == 0
        assert call(*given, "--quiet", "--stop-after", "train-untrained-0") == 2
