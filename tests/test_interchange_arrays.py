"""Activations from memory, .npy, .npz and other people's HDF5 files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from repsim.cli import main
from repsim.errors import UserError
from repsim.interchange import compare_arrays, open_arrays, open_hdf5
from repsim.result import load_result
from repsim.similarity import cka

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4, 5)).astype(np.float32)
Y = np.tanh(X[:, :2] + 0.3 * RNG.normal(size=(60, 2, 5))).astype(np.float64)
IDS = RNG.permutation(1000)[:60]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.save(tmp_path / "ids.npy", IDS)
    np.savez(tmp_path / "both.npz", early=X, late=Y)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["net/block1"] = X
        file.create_dataset("net/gap", data=Y, chunks=(7, 2, 5), compression="gzip")
        file["meta/id"] = [f"img{i}" for i in IDS]
        file["meta/label"] = IDS % 3
        file["meta/names"] = [[b"a", b"b"]] * 60
        file["net/short"] = X[:50]
        ragged = file.create_dataset("net/ragged", (60,), dtype=h5py.vlen_dtype(np.float32))
        ragged[0] = np.ones(3, np.float32)
    return tmp_path


def one(result: Any) -> float:
    assert result["similarity"].shape == (1, 1)
    return float(result["similarity"][0, 0])


EXPECTED = cka(X, Y)


def test_arrays_in_memory_of_any_kind(folder: Path) -> None:
    for a, b in (
        (X, Y),
        (torch.from_numpy(X), Y.tolist()),
        (torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)),
        (folder / "x.npy", str(folder / "y.npy")),
        ({"early": X}, {"late": np.asfortranarray(Y)}),
    ):
        assert one(compare_arrays(a, b)) == pytest.approx(EXPECTED, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_narrow_types_are_widened(dtype: torch.dtype) -> None:
    values = (torch.from_numpy(X) * 2).round().to(dtype)
    expected = cka(values.double(), Y)
    assert one(compare_arrays(values, Y)) == pytest.approx(expected, abs=1e-6)


def test_a_file_is_mapped_and_read_in_pieces(folder: Path) -> None:
    (layer,), ids = open_arrays(folder / "x.npy")
    assert ids is None
    assert isinstance(layer.source, np.memmap)
    assert (layer.samples, layer.features) == (60, 20)
    assert (layer.layer, layer.model, layer.condition) == ("x", "x", "clean")
    np.testing.assert_array_equal(layer.rows(5, 9), X[5:9].reshape(4, 20))
    assert layer.rows(0, 3).dtype == np.float32


def test_every_array_of_an_npz_and_a_dictionary_is_a_layer(folder: Path) -> None:
    for source in (folder / "both.npz", {"early": X, "late": Y}):
        result = compare_arrays(source, source)
        assert list(result["x_layer"].values) == ["early", "late"]
        assert float(result["similarity"][0, 1]) == pytest.approx(EXPECTED, abs=1e-6)
        np.testing.assert_allclose(np.diag(result["similarity"]), 1)
        assert "long_range" in json.loads(result.attrs["summary"])  # one network with itself


def test_an_hdf5_file_through_a_mapping(folder: Path) -> None:
    mapping = {"pooled": "net/gap", "first": "/net/block1"}
    layers, ids = open_hdf5(folder / "features.h5", mapping, ids="meta/id", model="them")
    assert [one.layer for one in layers] == ["pooled", "first"]
    assert layers[0].model == "them"
    assert ids is not None
    assert ids[0] == f"img{IDS[0]}"
    result = compare_arrays(
        folder / "features.h5", folder / "features.h5", map_x={"a": "net/block1"},
        map_y={"b": "net/gap"}, names=("one", "two"),
    )  # fmt: skip
    assert one(result) == pytest.approx(EXPECTED, abs=1e-6)
    arrays = json.loads(result.attrs["provenance"])["arrays"]
    assert arrays["y"][0]["from"].endswith("features.h5:net/gap")
    assert arrays["x"][0]["shape"] == [60, 4, 5]


def test_without_a_mapping_all_data_sets_of_numbers_are_layers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "some.hdf5", "w") as file:
        file["a/deep"], file["b"], file["label"] = X, Y, np.arange(60)
    layers, _ = open_hdf5(tmp_path / "some.hdf5")
    assert [one.layer for one in layers] == ["a/deep", "b"]


@pytest.mark.parametrize("kind", ["int", "text", "tensor"])
def test_rows_are_matched_by_ids(kind: str, folder: Path) -> None:
    order = np.random.default_rng(1).permutation(60)
    ids: Any = {"int": IDS, "text": [f"é{i}" for i in IDS], "tensor": torch.from_numpy(IDS)}[kind]
    moved = ids[torch.from_numpy(order)] if kind == "tensor" else np.asarray(ids)[order]
    result = compare_arrays(X, Y[order], ids_x=ids, ids_y=moved)
    assert one(result) == pytest.approx(EXPECTED, abs=1e-6)
    assert json.loads(result.attrs["notes"]) == []
    unmatched = compare_arrays(X, Y[order])
    assert abs(one(unmatched) - EXPECTED) > 0.1
    assert any("matched by their position" in n for n in json.loads(unmatched.attrs["notes"]))


def test_ids_reorder_a_data_set_on_disk(folder: Path) -> None:
    order = np.random.default_rng(1).permutation(60)
    result = compare_arrays(
        X[order], folder / "features.h5", ids_x=[f"img{i}" for i in IDS[order]],
        ids_y="meta/id", map_y={"gap": "net/gap"},
    )  # fmt: skip
    assert one(result) == pytest.approx(EXPECTED, abs=1e-6)


def test_nan_is_found_whatever_the_measure() -> None:
    with pytest.raises(UserError, match=r"array:a: expected finite.*sample 37 has NaN"):
        compare_arrays({"a": nan_at(37)}, Y, measure=lambda a, b: 0.0)
    order = np.roll(np.arange(60), 5)
    with pytest.raises(UserError, match="sample 37 has NaN"):  # its place in the array
        compare_arrays(X, {"a": nan_at(37)}, ids_x=order, ids_y=np.arange(60),
                       measure=lambda a, b: 0.0)  # fmt: skip


def test_any_measure() -> None:
    result = compare_arrays(X, Y, measure=lambda a, b: float(a.shape[1] - b.shape[1]))
    assert one(result) == 10


def nan_at(row: int) -> np.ndarray:
    values = X.copy()
    values[row, 1, 2] = np.nan
    return values


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y[:50]), {}, "same samples.*60 rows.*50; give --ids"),
        ((X, Y), {"ids_x": IDS}, "for both sides or for none"),
        ((X, Y), {"ids_x": IDS, "ids_y": IDS + 1}, "same samples"),
        ((X, Y), {"ids_x": IDS, "ids_y": [str(i) for i in IDS]}, "one kind on both sides"),
        ((X, Y), {"ids_x": IDS[:9], "ids_y": IDS}, "expected 60, one a sample; got 9"),
        ((X, Y), {"ids_x": X[:, 0], "ids_y": IDS}, "one dimension of whole numbers or text"),
        ((X, Y), {"ids_x": "meta/id", "ids_y": IDS}, "expected a .npy file"),
        ((nan_at(37), Y), {}, "sample 37 has NaN or infinity"),
        ((X, [[1.0, 2.0], [3.0]]), {}, "rows of one shape"),
        ((X, np.arange(60.0)), {}, r"got shape \(60,\); a single feature is \(samples, 1\)"),
        ((X, np.zeros((60, 0))), {}, r"got shape \(60, 0\)"),
        ((X, np.full((60, 2), "a")), {}, "expected numbers"),
        ((X, np.full((60, 2), None)), {}, "different lengths or objects"),
        ((X, {"a": Y, "b": Y[:9]}), {}, "as many samples as array:a, 60; got 9"),
        ((X, {}), {}, "at least one layer"),
        ((X, Y), {"map_x": {"a": "b"}}, "a mapping belongs to an HDF5 file"),
    ],
)
def test_arrays_that_cannot_be_compared(
    arguments: tuple[Any, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        compare_arrays(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a": "net/blok1"}, "'net/blok1'; it is not there; near: net/block1"),
        ({"a": "net"}, "it is a group"),
        ({"a": "net/ragged"}, "rows of different lengths"),
        ({"a": "meta/names"}, "expected numbers|different lengths or objects"),
        ({"a": "meta/label"}, r"got shape \(60,\)"),
        ({"a": "net/gap", "b": "net/short"}, "as many samples as .*net/gap, 60; got 50"),
        ({}, "at least one layer"),
        (None, "as many samples as"),
    ],
)
def test_hdf5_files_that_cannot_be_read(
    folder: Path, mapping: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_hdf5(folder / "features.h5", mapping)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(folder: Path) -> None:
    whole = (folder / "x.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:200])
    (folder / "text.npy").write_text("0 1 2")
    (folder / "text.h5").write_text("0 1 2")
    (folder / "cut.npz").write_bytes((folder / "both.npz").read_bytes()[:300])
    np.save(folder / "objects.npy", np.array([[1, 2], [3]], dtype=object), allow_pickle=True)
    with h5py.File(folder / "empty.h5", "w"):
        pass
    for name, message in (
        ("cut.npy", "cut short"),
        ("text.npy", "an array of numbers"),
        ("text.h5", "cut short or something else"),
        ("cut.npz", "cut short"),
        ("objects.npy", "Python objects"),
        ("empty.h5", "it holds none"),
        ("none.npy", "no such file"),
        ("none.h5", "no such file"),
        ("x.csv", "no such file"),
        ("ids.npy", r"got shape \(60,\)"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_arrays(folder / name)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
    (folder / "x.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"as .npy, .npz or HDF5.*called \*.csv"):
        open_arrays(folder / "x.csv")


def test_a_file_is_closed_when_the_comparison_fails(folder: Path) -> None:
    mapping = {"gap": "net/gap"}
    with pytest.raises(UserError, match="sample 3 has NaN") as kept:  # and its traceback
        compare_arrays(folder / "features.h5", nan_at(3), map_x=mapping)
    with h5py.File(folder / "features.h5", "r+"):  # would be refused while it is open
        assert kept.value


def test_a_refused_file_is_closed(folder: Path) -> None:
    with pytest.raises(UserError):
        open_hdf5(folder / "features.h5", {"a": "nothing"})
    with h5py.File(folder / "features.h5", "r+"):  # would be refused while it is open
        pass


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run("arrays", "x.npy", "y.npy", "--json", "r.json", "--csv", "r.csv") == 0
    said = capsys.readouterr()
    assert f"similarity: {EXPECTED:.3f}" in said.out
    assert "matched by their position" in said.err
    assert one(load_result("arrays.h5")) == pytest.approx(EXPECTED, abs=1e-6)
    assert json.loads(Path("r.json").read_text())["similarity"][0][0] == pytest.approx(EXPECTED)
    table = pd.read_csv("r.csv")
    assert table.x_layer.tolist() == ["x"]
    assert table.similarity[0] == pytest.approx(EXPECTED)
    assert Path("arrays.png").is_file()

    mapped = ["--map", "first=net/block1", "--map", "pooled=net/gap", "--ids", "meta/id"]
    assert run("arrays", "features.h5", "features.h5", *mapped, "--out", "m.h5", "--quiet") == 0
    assert list(load_result("m.h5")["y_layer"].values) == ["first", "pooled"]
    across = ["--map", "gap=net/gap", "--measure", "cka", "--estimator", "biased"]
    assert run("arrays", "features.h5", "x.npy", *across, "--out", "a.h5", "--quiet") == 0
    assert load_result("a.h5").attrs["estimator"] == "biased"
    capsys.readouterr()
    for bad, message in (
        (["arrays", "x.npy", "y.npy"], "is there; give another name or --overwrite"),
        (["arrays", "x.npy", "none.npy", "--out", "z.h5"], "there is no such file"),
        (["arrays", "features.h5", "x.npy", "--map", "gap", "--out", "z.h5"], "LAYER=PATH"),
        (["arrays", "x.npy", "y.npy", "--measure", "ckaa", "--out", "z.h5"], "--measure expects"),
        (["arrays", "x.npy", "y.npy", "--ids", "none.npy", "--out", "z.h5"], "no such file"),
    ):
        assert run(*bad) == 2, bad
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
        assert len(lines) == 1
    assert not Path("z.h5").exists()
