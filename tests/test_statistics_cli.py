"""The statistics as a user asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from repsim.attacks import parse_attack
from repsim.checkpoint import load_model
from repsim.cli import main
from repsim.data import draw, load_data
from repsim.extract import extract
from repsim.pair import Images, compare_pair, compare_sides
from repsim.similarity import cka
from repsim.similarity.grams import ArrayGram, centred_gram
from repsim.store import open_store


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """Stores st.h5 and at.h5 of 120 digits, all.h5 of all layers of 30."""
    folder = tmp_path_factory.mktemp("statistics")
    for name, path in checkpoints.items():
        options = ["--model", path, "--samples", 120, "--steps", 4, "--quiet"]
        assert run("extract", *options, "--out", folder / f"{name}.h5") == 0
    options = ["--samples", 30, "--steps", 1, "--layers", "all", "--quiet"]
    assert run("extract", "--model", path, *options, "--out", folder / "all.h5") == 0
    return folder


def load(path: Path) -> xr.Dataset:
    return xr.load_dataset(path, engine="h5netcdf")


def masks(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Right clean, and right attacked."""
    with open_store(path) as store:
        clean, attacked = (store.column(c, "logits").argmax(1) for c in ("clean", "pgd"))
        return clean == store.labels, attacked == store.labels


def test_diff(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("at", "st"):
        out = tmp_path / f"{name}.h5"
        assert run("cka", desk / f"{name}.h5", "--out", out, "--quiet") == 0
    files = [tmp_path / "at.h5", tmp_path / "st.h5", "--out", tmp_path / "d.h5"]
    more = ["--json", tmp_path / "d.json", "--csv", tmp_path / "d.csv"]
    capsys.readouterr()
    assert run("diff", *files, *more) == 0
    said = capsys.readouterr()
    assert "at minus st, 5 × 5 layers" in said.out
    assert "independent" not in said.err
    found = load(tmp_path / "d.h5")
    a, b = (load(tmp_path / f"{name}.h5") for name in ("at", "st"))
    np.testing.assert_array_equal(found["similarity"], a["similarity"] - b["similarity"])
    numbers = json.loads((tmp_path / "d.json").read_text())
    assert numbers["alignment_mean_ci"][0] < numbers["alignment_mean"]
    assert len(pd.read_csv(tmp_path / "d.csv")) == 25
    assert (tmp_path / "d.png").stat().st_size > 5000
    # The same again is done at once; another is not written over it.
    assert run("diff", *files, "--quiet") == 0
    assert run("diff", files[1], files[0], *files[2:], "--quiet") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("diff", files[1], files[0], *files[2:], "--quiet", "--overwrite") == 0
    capsys.readouterr()
    assert run("info", tmp_path / "d.h5") == 0
    assert "difference of two results" in capsys.readouterr().out
    for kind in ("heatmap", "diagonal"):
        assert run("plot", tmp_path / "d.h5", "--kind", kind, "--out", tmp_path / "f.png") == 0
    assert run("plot", tmp_path / "d.h5", "--mask", "zero", "--out", tmp_path / "f.png") == 0


@pytest.mark.parametrize("among", ["fooled", "unfooled", "right"])
def test_among(desk: Path, tmp_path: Path, among: str, capsys: pytest.CaptureFixture[str]) -> None:
    right, attacked = masks(desk / "at.h5")
    chosen = {"fooled": right & ~attacked, "unfooled": right & attacked, "right": right}[among]
    out = tmp_path / "c.h5"
    options = ["--among", among, "--json", tmp_path / "c.json", "--out", out]
    assert run("cka", desk / "at.h5", *options) == 0
    assert f"{chosen.sum()} of 120 images ({among})" in capsys.readouterr().out
    result = load(out)
    assert result.attrs["samples"] == chosen.sum()
    with open_store(desk / "at.h5") as store:
        x, y = (store.representation(c, "layer2.0").rows(0, 120)[chosen] for c in ("clean", "pgd"))
    place = list(result["x_layer"].values).index("layer2.0")
    assert float(result["similarity"][place, place]) == pytest.approx(cka(x, y), abs=1e-6)
    numbers = json.loads((tmp_path / "c.json").read_text())
    assert (numbers["among"], numbers["of"], numbers["samples"]) == (among, 120, chosen.sum())
    assert numbers["alignment_mean_ci"] is not None
    assert json.loads(result.attrs["provenance"])["among"] == among
    assert numbers["control"]["alignment_mean"] > numbers["alignment_mean"]  # of the same images


def test_among_of_two_networks_needs_both(desk: Path) -> None:
    stores = [desk / "st.h5", desk / "at.h5"]
    report = compare_pair(stores, "st:adv,at:adv", among="unfooled")
    both = [masks(path) for path in stores]
    expected = np.logical_and.reduce([mask for pair in both for mask in pair]).sum()
    assert report.result.attrs["samples"] == expected
    report = compare_pair(stores, "st:clean,at:clean", among="right")
    assert report.result.attrs["samples"] == (both[0][0] & both[1][0]).sum()


def test_among_matches_the_images_of_two_stores(
    desk: Path, tmp_path: Path, checkpoints: dict[str, Path]
) -> None:
    images = draw(load_data("digits", "test"), 120)
    turned = images.take(np.random.default_rng(0).permutation(120))
    attack = parse_attack("pgd,steps=4", eps=0.15)
    extract(load_model(checkpoints["st"]), turned, [attack], tmp_path / "turned.h5")
    plain, shuffled = (
        compare_pair([desk / "at.h5", other], f"at:adv,{other.stem}:adv", among="unfooled")
        for other in (desk / "st.h5", tmp_path / "turned.h5")
    )
    assert shuffled.among == plain.among
    assert shuffled.result.attrs["samples"] == plain.result.attrs["samples"]
    np.testing.assert_allclose(
        shuffled.result["similarity"], plain.result["similarity"], atol=5e-3
    )  # float16 and batch rounding


def test_all_of_it_at_once(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "c.h5", tmp_path / "images.csv"
    options = ["--within", "class", "--permutations", 39, "--seed", 3, "--influence", table]
    files = ["--out", out, "--csv", tmp_path / "c.csv", "--json", tmp_path / "c.json"]
    assert run("cka", desk / "st.h5", *options, *files) == 0
    said = capsys.readouterr().out
    assert "120 images within classes" in said
    assert "of 25 cells lie above chance" in said
    assert "change the alignment's mean most" in said
    assert "--mask max" in said
    result, images = load(out), pd.read_csv(table)
    assert {"p", "null_95", "null_95_max", "lower", "replicates"} <= set(result.data_vars)
    assert len(images) == 120
    numbers = json.loads((tmp_path / "c.json").read_text())
    assert numbers["most_influential"][0]["index"] == images["index"][0]
    assert numbers["permutations"] == 39
    assert numbers["within"] == "class"
    assert list(pd.read_csv(tmp_path / "c.csv"))[-5:] == [
        "similarity", "lower", "upper", "p", "null_95"
    ]  # fmt: skip
    # Without the first image the mean is what the table says.
    with open_store(desk / "st.h5") as store:
        rows = np.flatnonzero(store.index != images["index"][0])
        assert set(images["id"]) == set(store.ids)
        sides = [one.reordered(rows) for c in ("clean", "pgd") for one in store.representations(c)]
        known = Images(store.ids[rows], store.index[rows], store.labels[rows])
        without = compare_sides(
            sides, ("st", "clean"), ("st", "pgd"), images=known, within="class", groups=1
        )
    change = without.alignment["alignment_mean"] - numbers["alignment_mean"]
    assert images["mean"][0] == pytest.approx(change, abs=1e-6)
    for mask in ("null", "max", "zero"):
        assert run("plot", out, "--mask", mask, "--out", tmp_path / f"{mask}.png") == 0


def test_the_same_seed_gives_the_same_file(desk: Path, tmp_path: Path) -> None:
    options = ["--permutations", 19, "--layers", "layer*", "--quiet", "--out"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("cka", desk / "st.h5", "--seed", seed, *options, tmp_path / f"{name}.h5") == 0
    a, b, c = (load(tmp_path / f"{name}.h5")["null_95"].values for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_duplicates_of_a_real_network(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cka", desk / "all.h5", "--out", tmp_path / "a.h5") == 0
    said = capsys.readouterr().err
    whole = load(tmp_path / "a.h5")
    pairs = {
        str(name): str(first)
        for name, first in zip(whole["x_layer"].values, whole["x_duplicate_of"].values, strict=True)
        if first
    }
    assert pairs["layer1"] == pairs["layer1.0"]  # the stage is its only block
    assert pairs["layer3"] == pairs["layer3.0"]
    assert f"{len(pairs)} layers hold the activations of an earlier one" in said
    assert run("cka", desk / "all.h5", "--drop-duplicates", "--out", tmp_path / "d.h5") == 0
    assert f"left out {len(pairs)} layers" in capsys.readouterr().err
    dropped = load(tmp_path / "d.h5")
    assert not (set(dropped["x_layer"].values) & set(pairs))
    stay = [name not in pairs for name in whole["x_layer"].values]
    np.testing.assert_allclose(
        dropped["similarity"], whole["similarity"].values[stay][:, stay], atol=1e-6
    )
    mean = dropped["similarity"].values.diagonal().mean()
    assert json.loads(dropped.attrs["summary"])["alignment_mean"] == pytest.approx(mean)


def test_gram_matrices_go_through_all_of_it(desk: Path) -> None:
    """What a live comparison has: no activations."""
    with open_store(desk / "at.h5") as store:
        activations = [one for c in ("clean", "pgd") for one in store.representations(c)]
        grams = [
            ArrayGram(centred_gram(r).numpy(), r.features, r.layer, r.condition, r.model)
            for r in activations
        ]
        right = {
            ("at", c): store.column(c, "logits").argmax(1) == store.labels for c in ("clean", "pgd")
        }
        images = Images(store.ids, store.index, store.labels, right)
        sides = ("at", "clean"), ("at", "pgd")
        found, expected = (
            compare_sides(
                kind, *sides, images=images, attacked=[sides[1]], among="unfooled", within="class",
                permutations=19, influence=True, drop_duplicates=True, memory=2**28,
            )
            for kind in (grams, activations)
        )  # fmt: skip
    for name in ("similarity", "lower", "p", "null_95"):
        np.testing.assert_allclose(found.result[name], expected.result[name], atol=2e-5)
    assert found.influence is not None
    assert expected.influence is not None
    by_image = [one.influence.sort_values("index")["mean"] for one in (found, expected)]
    np.testing.assert_allclose(*by_image, atol=1e-5)
