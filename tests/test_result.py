"""Results as files: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from repsim.compare import compare
from repsim.errors import UserError
from repsim.result import load_result, save_result, to_csv
from repsim.similarity import ArrayRepresentation


@pytest.fixture
def result() -> xr.Dataset:
    rng = np.random.default_rng(0)
    rows = [
        ArrayRepresentation(rng.normal(size=(40, 9)), layer, "clean", "sl")
        for layer in ("a.0", "b")
    ]
    columns = [
        ArrayRepresentation(rng.normal(size=(40, 5)), layer, "pgd", "größe, 2")
        for layer in ("a.0", "b", "c@2")
    ]
    columns[1].values[:] = 0  # nan must survive too
    return compare(rows, columns)


def test_a_result_is_read_as_it_was_written(result: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "cka.h5"
    save_result(result, path)
    found = load_result(path)
    xr.testing.assert_identical(found.load(), result)
    assert found.attrs == result.attrs
    assert isinstance(found.attrs["samples"], int | np.integer)
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()  # not held open
    assert float(found["similarity"][0, 0]) == float(result["similarity"][0, 0])


def test_a_result_without_intervals_or_words_is_written_too(
    result: xr.Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "own.h5"
    rows = [ArrayRepresentation(np.eye(5), "a")]
    own = compare(rows, rows, measure=lambda X, Y: 1)
    save_result(own, path)
    xr.testing.assert_identical(load_result(path), own)


def test_xarray_and_hdf5_open_it_without_repsim(result: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "cka.h5"
    save_result(result, path)
    code = (
        "import sys, xarray as xr\n"
        f"d = xr.load_dataset({str(path)!r}, engine='h5netcdf')\n"
        "assert not any(m.startswith('repsim') for m in sys.modules)\n"
        "print(d.similarity.sel(x=d.x_layer == 'b').shape, d.attrs['measure'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.split() == ["(1,", "3)", "cka"]
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["similarity"][:], result["similarity"].values)
        assert json.loads(file.attrs["summary"])["samples"] == 40


def test_an_earlier_result_stays_until_the_new_one_is_whole(
    result: xr.Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "cka.h5"
    save_result(result, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_result(result.assign_attrs(bad=object()), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    save_result(result * 2, path)
    assert path.read_bytes() != before


def test_a_folder_that_is_not_there_is_refused(result: xr.Dataset, tmp_path: Path) -> None:
    for write in (save_result, to_csv):
        with pytest.raises(UserError, match="expected an existing folder"):
            write(result, tmp_path / "nowhere" / "cka.h5")


def test_files_that_are_no_result(result: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "cka.h5"
    with pytest.raises(UserError, match=r"there is no such file.*repsim cka --pair"):
        load_result(path)
    path.write_text("layer,similarity\n")
    with pytest.raises(UserError, match="cut short or something else"):
        load_result(path)
    with h5py.File(path, "w") as file:
        file["conditions/clean/logits"] = np.zeros((3, 2))
        file.attrs["schema"] = 1
    with pytest.raises(UserError, match="another file; a store of activations goes to repsim cka"):
        load_result(path)
    xr.Dataset({"similarity": ("x", [1.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(UserError, match="this is another file"):
        load_result(path)
    save_result(result.assign_attrs(repsim_schema=2), path)
    with pytest.raises(UserError, match="schema 1; got 2; update repsim"):
        load_result(path)


@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_a_truncated_result_is_refused(result: xr.Dataset, tmp_path: Path, part: float) -> None:
    path = tmp_path / "cka.h5"
    save_result(result, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="cut short"):
        load_result(path)


def test_csv_has_a_line_a_cell(result: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "cka.csv"
    to_csv(result, path)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "x_model", "x_condition", "x_layer", "y_model", "y_condition", "y_layer",
        "similarity", "lower", "upper",
    ]  # fmt: skip
    assert len(rows) == 6
    for row, (i, j) in zip(rows, np.ndindex(2, 3), strict=True):
        assert row["x_layer"] == ["a.0", "b"][i]
        assert row["y_layer"] == ["a.0", "b", "c@2"][j]
        assert row["y_model"] == "größe, 2"
        for name in ("similarity", "lower", "upper"):
            np.testing.assert_equal(float(row[name]), float(result[name][i, j]))


def test_csv_without_intervals(tmp_path: Path) -> None:
    rows = [ArrayRepresentation(np.eye(5), "a")]
    to_csv(compare(rows, rows, groups=1, estimator="biased"), tmp_path / "cka.csv")
    header, line = (tmp_path / "cka.csv").read_text().splitlines()
    assert header.endswith("y_layer,similarity")
    assert float(line.split(",")[-1]) == pytest.approx(1)


def test_importing_does_not_import_xarray() -> None:
    code = "import sys, repsim.compare, repsim.result; print('xarray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
