"""`repsim reproduce`: what it prints before, while and after it works, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study_small import PRESET, preset

from repsim.cli import main
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
    each = [row["seconds"] for row in rows.values()]
    assert max(each) <= found["seconds"] <= sum(each) + 1
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["steps.json"]
    kept = (tmp_path / "study/steps.json").read_text()
    assert call(*given, "--dry-run", "--jobs", "2", "--json", str(out)) == 0
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
        (["--set", "probe.options.seed=3"], "probe.options: "),
        (["--set", "probe.train_on=clean;shared"], "are those of the test split"),
        (["--set", "evaluate.attacks=pgd,eps=4/255"], "in the comparison it is pgd,eps=0.15; name"),
        (["--set", "evaluate.attacks=fgsm,as=shared"], "in the comparison it is images of its own"),
        (["--set", "evaluate.attacks=noise,eps=0.5"], "in the comparison it is noise,eps=0.15"),
        (["--set", "evaluate.attacks=pgd,surrogate=no.pt,as=a"], "there is no file no.pt"),
        (["--set", "evaluate.samples=0"], "evaluate.samples expects at least 1; got 0"),
        (["--set", "probe.train=0"], "probe.train expects at least 20 images"),
        (["--set", "compare.groups=1"], "compare.groups expects at least 2; got 1"),
        (["--set", "compare.batch_size=0"], "compare.batch_size expects at least 1; got 0"),
        (["--set", "evaluate.batch_size=0"], "evaluate.batch_size expects at least 1; got 0"),
        (["--set", "compare.layers=layer1.0.conv7"], "layer pattern 'layer1.0.conv7' matches no"),
        (["--set", "probe.layers=lyer*"], "probe.layers, network sl-st-0: layer pattern"),
        (["--set", "compare.layers= "], "compare.layers expects blocks, leaf, all or patterns"),
        (
            ["--set", "compare.memory=1000", "--set", "compare.batch_size=64"],
            "within classes takes all images at once: over all 250 samples it would need",
        ),
        (["--measure-again"], "--measure-again is for --dry-run"),
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


def test_times_as_they_are_said() -> None:
    shown = {0.4: "0 s", 99: "99 s", 120: "2 min", 5940: "99 min", 6060: "1 h 41 min",
             19200: "5 h 20 min", 400000: "111 h"}  # fmt: skip
    assert {seconds: show_time(seconds) for seconds in shown} == shown


def test_old_findings_are_not_told_as_new_ones(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = "train-untrained-0"
    assert call(*given, "--jobs", "1", "--stop-after", one) == 0
    assert "findings" not in capsys.readouterr().out
    found = [{"key": "1", "verdict": "holds", "claim": "It is so.", "reason": "Look."}]
    (tmp_path / "study/findings.json").write_text(json.dumps(found))
    (tmp_path / "study/report.html").write_text("<html>")
    out = tmp_path / "out.json"
    assert call(*given, "--jobs", "1", "--stop-after", one, "--json", str(out)) == 0
    printed = capsys.readouterr().out
    assert printed == "findings: of other settings, run without --stop-after\n"
    assert json.loads(out.read_text())["findings"] is None


def test_what_cannot_be_answered_is_said_first(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*given, "--jobs", "1", "--stop-after", "train-untrained-0") == 0
    assert "will not be run" not in capsys.readouterr().err  # nor are findings asked for
    assert call(*given, "--dry-run") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("finding ")]
    assert [line.split()[1] for line in said] == ["4", "5", "6", "7", "8"]
    assert said[1] == (
        "finding 5 will not be run: Needs at networks of one scheme trained with several eps."
    )


def test_options_that_are_not_given_leave_the_presets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = preset(tmp_path, PRESET.replace("seeds = 1", 'seeds = 1\nprecision = "bf16"'))
    common = ["--preset", str(file), "--out", str(tmp_path / "study"), "--device", "cpu",
              "--jobs", "1", "--stop-after", "train-untrained-0", "--quiet"]  # fmt: skip
    assert call(*common) == 0
    assert read_study(tmp_path / "study")["settings"]["precision"] == "bf16"
    assert call(*common, "--precision", "float32") == 0
    assert read_study(tmp_path / "study")["settings"]["precision"] == "float32"


def test_claims_nothing_for_a_dry_run(given: list[str], tmp_path: Path) -> None:
    with api.claimed(tmp_path / "study"):
        assert call(*given, "--dry-run", "--quiet", "--stop-after", "train-untrained-0") == 0
        assert call(*given, "--quiet", "--stop-after", "train-untrained-0") == 2
