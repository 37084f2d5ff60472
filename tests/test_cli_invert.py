"""`repsim invert` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repsim.cli import main
from repsim.result import load_result

QUICK = ["--samples", "24", "--steps", "15", "--repetitions", "1"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_one_network(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run("invert", "--model", str(checkpoints["st"]), *QUICK) == 0
    said = capsys.readouterr()
    assert "budget laptop: 24 images of digits/test, each inverted from noise 1 time(s)" in said.err
    assert "15 steps from 0.32 down to 0 in batches of 128" in said.err
    assert "relative distance" in said.out
    assert "STIR, row given column" in said.out
    assert "CKA of row with column" not in said.out  # there is no other network
    assert "wrote stir.h5 and stir.png" in said.out
    assert "--model OTHER.pt" in said.out
    result = load_result("stir.h5")
    assert result["similarity"].shape == (1, 1)
    assert result["distance"].shape == (1, 1, 24)
    assert "inverted" not in result
    provenance = json.loads(result.attrs["provenance"])
    assert provenance["settings"]["start"] == "noise"
    assert provenance["networks"]["st"]["arch"] == "resnet8"
    assert provenance["data"]["samples"] == 24
    assert Path("stir.png").stat().st_size > 5000
    # It is a result like others.
    assert run("info", "stir.h5", "--quiet") == 0
    assert run("plot", "stir.h5", "--out", "heatmap.png") == 0


def test_two_networks(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, numbers = tmp_path / "a.h5", tmp_path / "a.json"
    models = ["--model", str(checkpoints["st"]), "--model", str(checkpoints["at"])]
    options = ["--start", "image", "--estimator", "biased", "--keep-images", "--groups", "6"]
    files = ["--out", str(out), "--json", str(numbers)]
    assert run("invert", *models, *QUICK, *options, *files) == 0
    said = capsys.readouterr()
    assert "biased linear CKA, 24 images" in said.out
    assert "CKA of row with column on the images inverted" in said.out
    found = json.loads(numbers.read_text())
    assert found["models"] == ["st", "at"]
    assert np.diagonal(found["inverted_cka"]) == pytest.approx([1, 1])
    assert np.array(found["stir_ci"]).shape == (2, 2, 2)
    assert found["settings"]["estimator"] == "biased"
    assert found["settings"]["repetitions"] == 1
    assert "stir_spread" not in found
    with xr.open_dataset(out, engine="h5netcdf") as result:
        assert result.attrs["estimator"] == "biased"
        assert result["similarity"].values.tolist() == found["stir"]
        assert result["inverted"].dims == ("y", "sample", "channel", "height", "width")
        assert result["inverted"].shape == (2, 24, 1, 8, 8)
        assert result["started"].shape == (24, 1, 8, 8)
        assert result["sample_id"].shape == (24,)
    # The same once more is refused before any work, and quiet says nothing.
    before = out.read_bytes()
    assert run("invert", *models, *QUICK, *files) == 2
    assert "give another name or --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    layer = ["--layer", "layer1.0.relu2", "--layer", "logits"]
    again = [*layer, "--overwrite", "--quiet", "--precision", "bf16", "--step-size", "0.5"]
    assert run("invert", *models, "--samples", "8", "--steps", "2", *files, *again) == 0
    said = capsys.readouterr()
    assert said.out == said.err == ""
    result = load_result(out)
    assert list(result["x_layer"].values) == ["layer1.0.relu2", "logits"]
    settings = json.loads(result.attrs["provenance"])["settings"]
    assert settings["step_size"] == 0.5
    assert settings["repetitions"] == 2  # the budget's
    assert settings["precision"] == "bf16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.png"], "expects a name for the result, such as x.h5"),
        (["--layer", "nowhere"], "no layer 'nowhere'"),
        (["--layer", "logits", "--layer", "layer1.0.relu2"], "1 networks and 2 layers"),
        (["--samples", "3"], "at least 4 images for debiased CKA; got 3"),
        (["--step-size", "0"], "step_size expects a number above 0"),
        (["--start", "there"], "'there' is not one of 'noise', 'image', 'grey'"),
        (["--budget", "phone"], "'phone' is not one of 'laptop', 'gpu'"),
        (["--out", "nowhere/x.h5"], "there is no folder nowhere"),
    ],
)
def test_mistakes(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run("invert", "--model", str(checkpoints["st"]), *QUICK, *options) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_the_same_network_twice(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", str(checkpoints["st"])] * 2
    assert run("invert", *models, *QUICK, "--out", str(tmp_path / "x.h5")) == 2
    assert "twice" in capsys.readouterr().err
