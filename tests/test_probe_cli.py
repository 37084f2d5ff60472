"""`repsim probe` as a user types it, its figure, and selective retraining."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from repsim.attacks import parse_attack, run_attack
from repsim.checkpoint import LoadedModel
from repsim.cli import main
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.hooks import capture
from repsim.plot.probes import probe_curves, probe_figure
from repsim.probe import agreement, load_probes
from repsim.probe.retrain import _after, _renewed, retrain
from repsim.runtime import Runtime

QUICK = ["--samples", "60", "--train-samples", "200", "--layers", "layer2.0", "--layers", "avgpool"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_live(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(checkpoints["st"])]
    files = ["--csv", "probes.csv", "--json", "probes.json"]
    attacked = ["--attack", "pgd", "--steps", "2", "--adaptive", "--train-on", "clean"]
    assert run("probe", *model, *QUICK, *attacked, "--train-on", "both", *files) == 0
    said = capsys.readouterr()
    for train in ("clean", "both:pgd"):
        title = f"st: ridge probes trained on {train}, accuracy on 60 test images (95% intervals)"
        assert title in said.out
    assert said.out.count("pgd (transfer)") == said.out.count("pgd (adaptive)") == 2
    assert "transfer: attacked against the whole network; adaptive: against the probe" in said.out
    assert "wrote probes.h5 and probes.png" in said.out
    assert "attack pgd: pgd,eps=0.15,steps=2" in said.err
    report = load_probes("probes.h5")
    assert report.layers == ["layer2.0", "avgpool"]
    table = pd.read_csv("probes.csv")
    pd.testing.assert_frame_equal(table, report.table)
    numbers = json.loads(Path("probes.json").read_text())
    assert len(numbers["probes"]) == len(table) == 2 * 2 * 4
    assert numbers["provenance"]["settings"]["solver"] == "ridge"
    assert numbers["provenance"]["attacks"]["pgd"]["params"]["steps"] == 2
    assert Path("probes.png").stat().st_size > 5000
    assert run("info", "probes.h5") == 0
    assert "kind        probes" in capsys.readouterr().out
    assert run("probe", *model, *QUICK) == 2
    assert "probes.h5 is there; give another name or --overwrite" in capsys.readouterr().err
    assert run("probe", *model, *QUICK, "--solver", "knn", "--overwrite", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert set(load_probes("probes.h5").table["test"]) == {"clean"}


def test_stores(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    made = ["extract", "--model", str(checkpoints["st"]), "--attack", "pgd", "--steps", "2",
            "--layers", "avgpool", "--quiet"]  # fmt: skip
    assert run(*made, "--split", "train", "--samples", "200", "--out", "train.h5") == 0
    assert run(*made, "--samples", "60", "--out", "features.h5") == 0
    assert run("probe", "--train", "train.h5", "--test", "features.h5") == 0
    capsys.readouterr()
    report = load_probes("probes.h5")
    assert list(report.table["attack"]) == ["none", "none", "transfer"]
    for arguments, wanted in (
        (["--train", "train.h5"], "--train and --test expect each other"),
        (["--train", "train.h5", "--test", "features.h5", "--attack", "pgd"], "is for --adaptive"),
        (["--train", "train.h5", "--test", "features.h5", "--adaptive"], "expects --model"),
        (["--train", "train.h5", "--test", "features.h5", "--retrain-from", "a"], "not stores"),
        ([], "probe expects --model CHECKPOINT, or --train"),
        (["--model", "resnet8", "--out", "a.png"], "expects a name for the result"),
    ):
        out = [] if "--out" in arguments else ["--out", "other.h5"]
        assert run("probe", *arguments, *out) == 2
        error = capsys.readouterr().err
        assert wanted in error
        assert len(error.strip().splitlines()) == 1


def test_chance_is_of_the_classes_of_the_data(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of the labels that happen to be among a few test images."""
    drawn: list[float] = []

    def figure(table: pd.DataFrame, title: str, chance: float) -> object:
        drawn.append(chance)
        return probe_figure(table, title, chance)

    monkeypatch.setattr("repsim.plot.probes.probe_figure", figure)
    few = ["--samples", "7", "--train-samples", "200", "--layers", "avgpool", "--quiet"]
    out = ["--out", str(tmp_path / "probes.h5")]
    assert run("probe", "--model", str(checkpoints["st"]), *few, *out) == 0
    assert drawn == [0.1]


def test_agreement_with_earlier_results(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    models = [["--model", str(checkpoints[name])] for name in ("st", "at")]
    assert run("probe", *models[0], *QUICK, "--out", "st.h5", "--quiet") == 0
    agree = ["--out", "at.h5", "--agree", "st.h5", "--json", "at.json"]
    assert run("probe", *models[1], *QUICK, *agree) == 0
    said = capsys.readouterr().out
    assert "at and st: how often probes trained on clean say the same of 60 images" in said
    assert "Cohen's kappa" in said
    assert "κ" in said
    assert "wrote at.h5 and at.png and at.agreement.csv" in said
    table = pd.read_csv("at.agreement.csv")
    wanted = agreement(load_probes("at.h5"), load_probes("st.h5"))
    pd.testing.assert_frame_equal(table, wanted)
    assert len(json.loads(Path("at.json").read_text())["agreement"]) == len(table) == 2
    # Of results alone nothing is trained.
    assert run("probe", "--agree", "at.h5", "--agree", "st.h5", "--out", "two.h5") == 0
    assert "wrote two.agreement.csv\n" in capsys.readouterr().out
    assert not Path("two.h5").exists()
    pd.testing.assert_frame_equal(pd.read_csv("two.agreement.csv"), wanted)
    Path("again.h5").write_bytes(Path("st.h5").read_bytes())
    assert run("probe", "--agree", "again.h5", "--agree", "st.h5", "--out", "three.h5") == 0
    assert "st (again) and st (st)" in capsys.readouterr().out
    quick = ["--samples", "50", *QUICK[2:]]
    other = load_probes("st.h5")
    other.ids += np.uint64(1)
    other.save("other.h5")
    for arguments, wanted_error in (
        (["--agree", "st.h5"], "expects a second result"),
        (["--agree", "st.h5", "--agree", "at.h5", "--csv", "a.csv"], "has no use for --csv"),
        (["--agree", "st.h5", "--agree", "none.h5"], "there is no such file"),
        (["--agree", "st.h5", "--agree", "other.h5"], "have none in common"),
        ([*models[0], *quick, "--out", "at.h5", "--agree", "st.h5"], "at.h5 is there"),
        (["--agree", "at.h5", "--agree", "st.h5", "--out", "two.h5"], "two.agreement.csv is there"),
    ):
        assert run("probe", *arguments) == 2
        error = capsys.readouterr().err
        assert wanted_error in error
        assert len(error.strip().splitlines()) == 1


def test_options_without_a_use_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrained = ["--model", str(checkpoints["st"]), "--retrain-from", "layer3.0"]
    stores = ["--train", "a.h5", "--test", "b.h5"]
    for way, given, flag in (
        (retrained, ["--solver", "ridge"], "--solver"),
        (retrained, ["--layers", "all"], "--layers"),
        (retrained, ["--strengths", "1,2"], "--strengths"),
        (retrained, ["--reduce", "flatten"], "--reduce"),
        (retrained, ["--validation", "0.2"], "--validation"),
        (retrained, ["--adaptive", "--no-hold"], "--adaptive, --no-hold"),
        (stores, ["--train-samples", "100"], "--train-samples"),
    ):
        assert run("probe", *way, *given, "--out", str(tmp_path / "probes.h5")) == 2
        error = capsys.readouterr().err
        assert f"has no use for {flag}; leave it out" in error
        assert len(error.strip().splitlines()) == 1
    assert run("probe", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Of sgd, adam and retraining. [default: 2, 0.02 and 0.05]" in said


def made_up(networks: int = 1, layers: int = 5) -> pd.DataFrame:
    rows = [
        {"network": f"net{i}", "layer": f"layer{layer}.0", "train": "clean", "test": test,
         "attack": attack, "accuracy": value, "lower": value - 0.05, "upper": value + 0.05}
        for i in range(networks)
        for layer in range(layers)
        for test, attack, value in (
            ("clean", "none", 0.9), ("noise", "none", 0.85), ("pgd", "transfer", 0.4 + 0.1 * i),
            ("pgd", "adaptive", 0.1),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("networks", [1, 2, 4])
def test_transfer_and_adaptive_never_look_alike(networks: int) -> None:
    figure, ax = plt.subplots()
    assert probe_curves(made_up(networks), ax, chance=0.1) is ax
    lines = {str(line.get_label()): line for line in ax.lines if line.get_label()[0] != "_"}
    assert len(lines) == 4 * networks
    transfer = [line for label, line in lines.items() if "on the network (transfer)" in label]
    adaptive = [line for label, line in lines.items() if "on the probe (adaptive)" in label]
    assert len(transfer) == len(adaptive) == networks
    for one in transfer:
        for other in adaptive:
            # Dashes of one's own have no name.
            assert one._unscaled_dash_pattern != other._unscaled_dash_pattern
            assert one.get_marker() != other.get_marker()
            assert to_hex(one.get_markerfacecolor()) != to_hex(other.get_markerfacecolor())
    for i, line in enumerate(transfer):
        assert list(line.get_ydata()) == pytest.approx([0.4 + 0.1 * i] * 5)
    assert len(ax.collections) == 4 * networks  # intervals
    plt.close(figure)


def test_figures_of_what_cannot_be_drawn() -> None:
    table = made_up(2)
    with pytest.raises(UserError, match="one row for each of 5 layers"):
        probe_figure(table.drop(index=0))
    with pytest.raises(UserError, match="got an empty one"):
        probe_figure(table[:0])
    with pytest.raises(UserError, match="a label for each of 8 lines; got 1"):
        probe_curves(table, labels=["one"])


@pytest.fixture(scope="module")
def few(digits_train: ImageData, digits_test: ImageData) -> tuple[ImageData, ImageData]:
    return draw(digits_train, 320), draw(digits_test, 60)


def test_retraining_keeps_what_comes_before(
    loaded: LoadedModel, few: tuple[ImageData, ImageData]
) -> None:
    images = to_float(few[0].images[:8])
    size, after = _after(loaded.model, images, "layer2.0")
    assert size == 32 * 4 * 4
    assert after
    assert all(name.split(".")[0] in ("layer3", "linear", "fc", "head") for name in after)
    old = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    with _renewed(loaded, after, Runtime.of("cpu"), 0) as (network, trained):
        assert all(p.requires_grad for p in trained)
        assert sum(p.requires_grad for p in network.parameters()) == len(trained)
        with torch.no_grad(), capture(loaded.model, ["layer2.0", "layer3.0"]) as captured:
            loaded.model(images)
            before = dict(captured)
        with torch.no_grad(), capture(network, ["layer2.0", "layer3.0"]) as captured:
            network(images)
            now = dict(captured)
        assert torch.allclose(before["layer2.0"], now["layer2.0"], atol=1e-5)
        assert not torch.allclose(before["layer3.0"], now["layer3.0"])
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, old[name])


def test_retraining(
    loaded: LoadedModel, few: tuple[ImageData, ImageData], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    attack = parse_attack("pgd,steps=2", eps=0.1)
    modes: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        modes.append(options["mode"])
        return run_attack(*arguments, **options)

    monkeypatch.setattr("repsim.probe.retrain.run_attack", counted)
    report = retrain(
        loaded, *few, layers=["layer3.0"], attacks=[attack], train_on=["clean", "pgd"], epochs=3,
        batch_size=64,
    )  # fmt: skip
    assert modes == ["last"] * (3 * 5)  # every batch of the one training on attacked images
    table = report.table
    assert set(table["solver"]) == {"retrain"}
    assert report.layers == ["layer3.0"]
    assert len(table) == 2 * 4

    def value(train: str, test: str, target: str) -> float:
        return float((report.predictions["layer3.0", train, test, target] == report.labels).mean())

    assert value("clean", "clean", "none") > 0.7
    assert value("clean", "pgd", "adaptive") <= value("clean", "clean", "none")
    report.save(tmp_path / "retrained.h5")
    assert load_probes(tmp_path / "retrained.h5").table.equals(table)
    probe_figure(table)
    again = retrain(loaded, *few, layers=["layer3.0"], epochs=1, batch_size=64, control=False)
    other = retrain(loaded, *few, layers=["layer3.0"], epochs=1, batch_size=64, control=False)
    key = ("layer3.0", "clean", "clean", "none")
    assert (again.predictions[key] == other.predictions[key]).all()
    with pytest.raises(UserError, match="--retrain-from expects a layer that repsim layers lists"):
        retrain(loaded, *few, layers=["layer9"])
    with pytest.raises(UserError, match="--train-on expects"):
        retrain(loaded, *few, layers=["layer3.0"], train_on=["pgd"])
    inner = parse_attack("feature,layer=layer1.0", eps=0.1)
    with pytest.raises(UserError, match="--retrain-from expects attacks on the network"):
        retrain(loaded, *few, layers=["layer3.0"], attacks=[inner])


def test_retraining_as_a_user_types_it(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "retrained.h5"
    model = str(checkpoints["st"])
    options = ["--retrain-from", "layer3.0", "--epochs", "1", "--steps", "2", "--samples", "40",
               "--train-samples", "128", "--batch-size", "64", "--out", str(out)]  # fmt: skip
    assert run("probe", "--model", model, *options) == 0
    said = capsys.readouterr().out
    assert "st: all after the layer retrained on clean" in said
    assert "adaptive: against the retrained network" in said
    assert set(load_probes(out).table["attack"]) == {"none", "transfer", "adaptive"}
