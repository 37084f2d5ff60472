"""`repsim cka --model` and `repsim compare --model`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from repsim.cli import main
from repsim.cli.live import distinct
from repsim.errors import UserError
from repsim.result import load_result

OPTIONS = ["--data", "digits", "--samples", "60"]
ATTACK = ["--attack", "pgd,steps=2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, path in checkpoints.items():
        Path(f"{name}.pt").write_bytes(path.read_bytes())
    return tmp_path


def repsim(*words: str, status: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == status, words


def test_everything_against_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cka", "--model", "st.pt", "--model", "at.pt", *ATTACK, *OPTIONS]
    repsim(*words, "--json", "n.json", "--csv", "cells.csv")
    out = capsys.readouterr().out
    assert "st with at" in out
    assert Path("cka.png").stat().st_size > 10_000
    result = xr.open_dataset("cka.h5", engine="h5netcdf")
    layers = result.sizes["x"] // 6
    assert result.sizes == {"x": 6 * layers, "y": 6 * layers, **{
        k: v for k, v in result.sizes.items() if k not in "xy"
    }}  # fmt: skip
    assert set(result["x_model"].values) == {"st", "at"}
    assert set(result["x_condition"].values) == {"clean", "noise", "pgd"}
    numbers = json.loads(Path("n.json").read_text())
    assert numbers["samples"] == 60
    assert numbers["estimator"] == "debiased"
    pgd = numbers["models"]["st"]["pgd"]
    assert pgd["accuracy"] < numbers["models"]["st"]["clean"]["accuracy"]
    assert pgd["alignment_mean_ci"][0] < pgd["alignment_mean"] < pgd["alignment_mean_ci"][1]
    assert [pair["condition"] for pair in numbers["pairs"]] == ["clean", "noise", "pgd"]
    assert len(Path("cells.csv").read_text().splitlines()) == 1 + (6 * layers) ** 2
    repsim("plot", "cka.h5", "--out", "again.png", "--title", "all")
    # The sides are parted as in the figure beside the result, not by the layers' stages.
    assert Path("again.png").stat().st_size == pytest.approx(
        Path("cka.png").stat().st_size, rel=0.1
    )
    capsys.readouterr()
    # The same again: nothing is run, the result is replaced; another comparison is refused.
    repsim(*words)
    assert "6 reused, 0 made" in capsys.readouterr().err
    repsim(*words, "--layers", "conv1", status=2)
    assert "holds another comparison" in capsys.readouterr().err


def test_a_pair_is_what_stores_give(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repsim("cka", "--model", "st.pt", *ATTACK, *OPTIONS, "--pair", "clean,adv", "--out", "live.h5",
           "--json", "live.json", "--no-cache")  # fmt: skip
    assert not Path("grams").exists()
    repsim("extract", "--model", "st.pt", *ATTACK, *OPTIONS, "--dtype", "float32")
    repsim("cka", "--pair", "clean,adv", "--json", "stored.json")
    live, stored = load_result("live.h5"), load_result("cka.h5")
    for name in ("similarity", "lower", "upper"):
        np.testing.assert_allclose(live[name], stored[name], atol=1e-4)
    a, b = (json.loads(Path(f"{name}.json").read_text()) for name in ("live", "stored"))
    assert a["alignment_mean"] == pytest.approx(b["alignment_mean"], abs=1e-5)
    assert a["control"]["alignment_mean"] == pytest.approx(b["control"]["alignment_mean"], abs=1e-5)
    assert Path("live.png").is_file()


@pytest.mark.parametrize("measure", ["disagreement", "jensen-shannon"])
def test_predictions_are_those_of_a_store(folder: Path, measure: str) -> None:
    repsim("extract", "--model", "st.pt", *ATTACK, *OPTIONS, "--dtype", "float32")
    repsim("compare", "--measure", measure, "--pair", "clean,adv", "--out", "stored.h5")
    words = ["compare", "--measure", measure, "--model", "st.pt", *ATTACK, *OPTIONS]
    repsim(*words, "--pair", "clean,adv", "--out", "live.h5")
    live, stored = load_result("live.h5"), load_result("stored.h5")
    for name in ("similarity", "lower", "upper"):
        np.testing.assert_allclose(live[name], stored[name], atol=1e-6)
    assert live["x_layer"].values.tolist() == ["logits"]
    repsim(*words, "--out", "all.h5")
    assert load_result("all.h5").sizes["x"] == 3
    assert float(live["similarity"][0, 0]) == float(load_result("all.h5")["similarity"][0, 2]) > 0


def test_predictions_expect_a_head(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load("st.pt", weights_only=True)
    (head,) = content["head"]
    for name in ("weight", "bias"):
        del content["state_dict"][f"{head}.{name}"]
    torch.save({**content, "head": []}, "encoder.pt")
    repsim("compare", "--measure", "disagreement", "--model", "encoder.pt", *OPTIONS, status=2)
    assert "expects logits; encoder has no linear head" in capsys.readouterr().err


def test_what_can_be_asked_of_a_pair(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "st.pt", *ATTACK, *OPTIONS, "--pair", "clean,adv"]
    repsim("cka", *words, "--permutations", "19", "--influence", "images.csv", "--drop-duplicates",
           "--layers", "all")  # fmt: skip
    assert "above chance" in capsys.readouterr().out
    assert len(Path("images.csv").read_text().splitlines()) == 61
    repsim("cka", *words, "--within", "class", "--out", "within.h5")
    repsim("compare", "--measure", "rsa", *words, "--out", "rsa.h5", "--groups", "2")
    assert load_result("rsa.h5").attrs["measure"] == "rsa"
    repsim("compare", "--measure", "cca", *words, "--out", "cca.h5", status=2)
    repsim("cka", *words, "--estimator", "minibatch", "--batch-size", "20", "--out", "m.h5")
    assert load_result("m.h5").attrs["estimator"] == "minibatch"


REFUSED = {
    "cka --attack pgd": "--attack belongs to a comparison of networks; add --model FILE",
    "cka --step-size 1/255": "--step-size belongs to",
    "cka x.h5 --model st.pt": "stores or networks, not both",
    "cka --model st.pt --memory lots": "expected a size such as 2GB",
    "cka --model st.pt --data digits --permutations 9": "--permutations expects one pair",
    "cka --model st.pt --data digits --pair clean,adv": "--pair expects two of clean",
    "cka --model st.pt --data digits --model at.pt --pair clean,pgd": "two of st:clean, at:clean",
    "cka --model st.pt --data digits --model st.pt": "expects different networks; got st.pt twice",
    "cka --model st.pt --data digits --layers nothing": "nothing",
    "cka --model none.pt": "none.pt",
    "cka --model st.pt --data digits --cache st.pt": "expects a folder",
    "cka --model st.pt --data digits --out out.png": "expects a name for the result",
    "cka --model st.pt --data digits --samples 500 --batch-size 64 --memory 1MB "
    "--estimator debiased": "--memory allows",
}


@pytest.mark.parametrize("command", list(REFUSED))
def test_refusals_are_one_line(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    repsim(*command.split(), status=2)
    error = capsys.readouterr().err.strip().splitlines()
    assert REFUSED[command] in error[-1]
    assert sorted(folder.iterdir()) == before


def test_names_are_told_apart_by_their_folders() -> None:
    assert distinct(["a/at.pt", "b/at.pt", "st.pt"], ["at", "at", "st"]) == ["a/at", "b/at", "st"]
    assert distinct(["x/0/at.pt", "y/0/at.pt"], ["at", "at"]) == ["x/0/at", "y/0/at"]
    with pytest.raises(UserError, match="twice"):
        distinct(["a/at.pt", "a/at.pt"], ["at", "at"])
