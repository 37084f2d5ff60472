"""All pairs on the disk: what comes back is what was written, and others can read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repsim.cli import main
from repsim.compare import AllPairs, compare_all
from repsim.errors import UserError
from repsim.result import load_result, save_result
from repsim.result.pairs import load_pairs, save_pairs
from repsim.similarity import ArrayRepresentation


def made(groups: int = 5, networks: tuple[str, ...] = ("a", "b")) -> AllPairs:
    rng = np.random.default_rng(0)
    return compare_all(
        [
            ArrayRepresentation(
                rng.normal(size=(40, 5 + i)).astype(np.float32), model=model, condition=condition,
                layer=f"layer{i}",
            )
            for model in networks
            for condition in ("clean", "pgd")
            for i in range(3)
        ],
        groups=groups, ids=np.arange(40, dtype=np.uint64),
    )  # fmt: skip


@pytest.mark.parametrize("groups", [5, 1])
def test_comes_back_as_it_was(tmp_path: Path, groups: int) -> None:
    pairs = made(groups)
    save_pairs(tmp_path / "all.h5", pairs, provenance={"study": "demo"})
    back = load_pairs(tmp_path / "all.h5")
    assert (back.keys, back.samples, back.measure) == (pairs.keys, 40, "cka")
    assert (back.sample_ids, back.duplicate_of) == (pairs.sample_ids, pairs.duplicate_of)
    np.testing.assert_array_equal(back.pairs.value, pairs.pairs.value)
    np.testing.assert_array_equal(back.pairs.sizes, pairs.pairs.sizes)
    assert back.pairs.attributes == pairs.pairs.attributes
    assert back.pairs.notes == pairs.pairs.notes
    if groups == 1:
        assert pairs.pairs.replicates is back.pairs.replicates is None
    else:
        assert back.pairs.replicates is not None
        assert pairs.pairs.replicates is not None
        np.testing.assert_allclose(back.pairs.replicates, pairs.pairs.replicates, atol=1e-7)
    sides = ("a", "clean"), ("b", "pgd")
    assert back.alignment(*sides)["alignment_mean"] == pairs.alignment(*sides)["alignment_mean"]
    ends = back.alignment(*sides).get("alignment_mean_ci")
    assert (ends is None) == (groups == 1)
    if ends:
        assert ends == pytest.approx(pairs.alignment(*sides)["alignment_mean_ci"], abs=1e-5)


def test_is_a_result_as_any_other(tmp_path: Path) -> None:
    pairs = made()
    save_pairs(tmp_path / "all.h5", pairs, provenance={"study": "demo"})
    result = load_result(tmp_path / "all.h5")
    assert json.loads(result.attrs["provenance"])["study"] == "demo"
    with xr.open_dataset(tmp_path / "all.h5", engine="h5netcdf") as plain:
        np.testing.assert_array_equal(plain["similarity"], pairs.pairs.value)
        assert list(plain["y_layer"].values[:3]) == ["layer0", "layer1", "layer2"]
        assert (plain["lower"].values <= plain["similarity"].values + 1e-6).all()
    with pytest.raises(SystemExit) as ended:
        main(["plot", str(tmp_path / "all.h5"), "--out", str(tmp_path / "all.png")])
    assert ended.value.code == 0
    assert (tmp_path / "all.png").stat().st_size > 1000


def test_another_result_is_refused(tmp_path: Path) -> None:
    save_result(made().matrix(("a", "clean"), ("b", "pgd")), tmp_path / "one.h5")
    with pytest.raises(UserError, match="expected all layers of all networks"):
        load_pairs(tmp_path / "one.h5")
    with pytest.raises(UserError, match="no such file"):
        load_pairs(tmp_path / "none.h5")


def test_nothing_half_written(tmp_path: Path) -> None:
    save_pairs(tmp_path / "all.h5", made())
    before = (tmp_path / "all.h5").read_bytes()
    broken = made()
    broken.pairs.attributes["bad"] = object()
    with pytest.raises(TypeError):
        save_pairs(tmp_path / "all.h5", broken)
    assert (tmp_path / "all.h5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["all.h5"]
