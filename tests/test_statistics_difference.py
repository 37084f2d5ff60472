"""Differences of two results: intervals as of the t test, layers matched by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from repsim.compare import compare
from repsim.errors import UserError
from repsim.result import difference, load_result, save_result, to_csv
from repsim.similarity import ArrayRepresentation, Representation, interval
from repsim.similarity.difference import Estimate, difference_interval

N = 90
LAYERS = ("stem", "a", "b", "c", "d", "pool")
IDS = np.arange(N, dtype=np.uint64)


def side(
    condition: str, model: str = "net", *, noise: float = 0.0, layers: tuple[str, ...] = LAYERS,
    seed: int = 0,
) -> list[Representation]:  # fmt: skip
    rng, extra = np.random.default_rng(seed), np.random.default_rng([seed, len(condition)])
    values, found = rng.normal(size=(N, 12)), {}
    for depth, layer in enumerate(LAYERS):
        values = np.tanh(values @ rng.normal(size=(values.shape[1], 12 + depth)) / 3)
        found[layer] = values + noise * depth * extra.normal(size=values.shape)
    return [ArrayRepresentation(found[x], x, condition, model) for x in layers]


def result(noise: float, model: str = "net", ids: Any = IDS, **options: Any) -> xr.Dataset:
    return compare(side("clean", model), side("pgd", model, noise=noise), ids=ids, **options)


# The arithmetic: for a mean, leave-one-out is the t test


def leave_one_out(values: np.ndarray) -> Estimate:
    n = len(values)
    return Estimate(values.mean(), (values.sum() - values) / (n - 1), np.ones(n, dtype=np.int64))


def test_paired_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=25)
    b = a + 0.1 * rng.normal(size=25) + 0.3
    found = difference_interval(leave_one_out(a), leave_one_out(b), paired=True)
    assert found == pytest.approx(tuple(stats.ttest_rel(a, b).confidence_interval()))


def test_independent_is_welchs_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=25), 4 * rng.normal(size=9) + 1
    found = difference_interval(leave_one_out(a), leave_one_out(b), paired=False)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert found == pytest.approx(tuple(expected))
    constant = Estimate(1.0, np.ones(5), np.ones(5, dtype=np.int64))
    assert difference_interval(constant, constant, paired=False) == (0, 0)
    nothing = Estimate(1.0, None, np.array([], dtype=np.int64))
    assert difference_interval(constant, nothing, paired=False) is None


# Results


def test_of_the_same_samples_it_is_paired() -> None:
    a, b = result(0.05), result(0.3)
    found = difference(a, b, names=("weak", "strong"))
    value = a["similarity"].values - b["similarity"].values
    np.testing.assert_array_equal(found["similarity"], value)
    each = a["replicates"].values.astype(float) - b["replicates"].values.astype(float)
    lower, upper = interval(value, each, a["group_size"].values)
    np.testing.assert_allclose(found["lower"], lower, atol=1e-12)
    np.testing.assert_allclose(found["upper"], upper, atol=1e-12)
    np.testing.assert_array_equal(found["excludes_0"], (lower > 0) | (upper < 0))
    np.testing.assert_allclose(found["replicates"], each, atol=1e-7)
    assert found.attrs["difference"] == "weak minus strong"
    assert json.loads(found.attrs["notes"]) == []
    summary = json.loads(found.attrs["summary"])
    diagonals = value.diagonal()
    assert summary["alignment_mean"] == pytest.approx(diagonals.mean())
    assert summary["alignment_last_third"] == pytest.approx(diagonals[-2:].mean())
    i, j = np.indices(value.shape)
    assert summary["long_range"] == pytest.approx(value[abs(i - j) > 3].mean())
    ends = interval(diagonals.mean(), each[:, range(6), range(6)].mean(1), a["group_size"].values)
    assert summary["alignment_mean_ci"] == pytest.approx(ends)
    assert summary["first"]["alignment_mean"] == pytest.approx(
        json.loads(a.attrs["summary"])["alignment_mean"]
    )
    assert summary["first"]["alignment_mean_ci"] == pytest.approx(
        json.loads(a.attrs["summary"])["alignment_mean_ci"], abs=1e-6
    )
    assert summary["cells_excluding_0"] == int(found["excludes_0"].sum())


def test_pairing_makes_it_narrower_and_other_samples_are_said() -> None:
    a, b = result(0.2), result(0.25)
    paired = difference(a, b)
    for other in (result(0.25, ids=IDS + np.uint64(1)), result(0.25, ids=None)):
        found = difference(a, other)
        assert "taken as independent" in json.loads(found.attrs["notes"])[0]
        assert "replicates" not in found
        width, narrow = ((one["upper"] - one["lower"]).values for one in (found, paired))
        assert np.median(narrow / width) < 0.7
    unknown = difference(result(0.2, ids=None), result(0.25, ids=None))
    assert "taken as independent" in json.loads(unknown.attrs["notes"])[0]
    other = result(0.25, groups=9)
    assert "taken as independent" in json.loads(difference(a, other).attrs["notes"])[0]
    batches = {"estimator": "minibatch", "batch_size": 15}
    assert "replicates" in difference(result(0.2, **batches), result(0.3, **batches))
    with pytest.raises(UserError, match="one estimator; got debiased in first and minibatch"):
        difference(a, result(0.2, **batches))


def test_layers_are_matched_by_name() -> None:
    a, b = result(0.05), result(0.3)
    turned = compare(
        side("clean", layers=LAYERS[::-1]), side("pgd", noise=0.3, layers=LAYERS[2:] + LAYERS[:2]),
        ids=IDS,
    )  # fmt: skip
    xr.testing.assert_allclose(difference(a, turned), difference(a, b), atol=1e-6)
    fewer = compare(side("clean"), side("pgd", layers=LAYERS[:5]), ids=IDS)
    with pytest.raises(UserError, match=r"columns of both results; first has 6, second 5.*pool"):
        difference(a, fewer)
    with pytest.raises(UserError, match=r"columns.*first has 5, second 6.*pool"):
        difference(fewer, a)


def test_without_replicates_there_are_values_and_no_intervals() -> None:
    old = result(0.3).drop_vars(["replicates", "group_size"])
    found = difference(result(0.05), old, names=("new", "old"))
    assert set(found.data_vars) == {"similarity"}
    assert "old keeps no jackknife replicates" in json.loads(found.attrs["notes"])[0]
    summary = json.loads(found.attrs["summary"])
    assert summary["alignment_mean"] > 0
    assert summary["alignment_mean_ci"] is None
    assert summary["first"]["alignment_mean_ci"] is not None


def test_with_itself_there_is_none() -> None:
    a = result(0.3)
    found = difference(a, a)
    assert (found["similarity"] == 0).all()
    assert not found["excludes_0"].any()
    # Of a layer with itself rounding only is left, whatever its interval.
    clean = compare(side("clean"), side("clean"), ids=IDS)
    moved = compare(side("pgd", noise=0.3), side("pgd", noise=0.3), ids=IDS)
    found = difference(moved, clean)
    assert not found["excludes_0"].values.diagonal().any()
    summary = json.loads(found.attrs["summary"])
    assert "alignment_mean" not in summary  # of itself it is 1 in both
    assert summary["long_range_ci"][0] < summary["long_range"] < summary["long_range_ci"][1]


def test_names_say_what_was_subtracted() -> None:
    found = difference(result(0.1, "at"), result(0.3, "st"))
    assert set(found["x_model"].values) == {"at − st"}
    assert set(found["y_condition"].values) == {"pgd"}
    attacked = compare(side("pgd", noise=0.3), side("pgd", noise=0.3), ids=IDS)
    found = difference(attacked, compare(side("clean"), side("clean"), ids=IDS))
    assert set(found["x_condition"].values) == {"pgd − clean"}


def test_an_undefined_cell_leaves_the_means_of_both() -> None:
    flat = side("pgd", noise=0.3)
    flat[3].values[:] = 1
    a, b = result(0.05), compare(side("clean"), flat, ids=IDS)
    summary = json.loads(difference(a, b).attrs["summary"])
    stay = [0, 1, 2, 4, 5]
    means = [one["similarity"].values.diagonal()[stay].mean() for one in (a, b)]
    assert summary["alignment_mean"] == pytest.approx(means[0] - means[1])
    assert summary["first"]["alignment_mean"] == pytest.approx(means[0])


def test_it_is_a_result_like_any_other(tmp_path: Path) -> None:
    found = difference(result(0.05), result(0.3))
    save_result(found, tmp_path / "d.h5")
    again = load_result(tmp_path / "d.h5")
    xr.testing.assert_identical(again, found)
    to_csv(again, tmp_path / "d.csv")
    header = (tmp_path / "d.csv").read_text().splitlines()[0]
    assert header.endswith("y_layer,similarity,lower,upper,excludes_0")
    zero = difference(again, again)  # and can be subtracted
    assert "replicates" in zero
    measured = result(0.1).assign_attrs(measure="rsa")
    with pytest.raises(UserError, match="one measure; got cka in first and rsa in second"):
        difference(result(0.1), measured)


def test_replicates_are_kept_small_and_give_the_interval(tmp_path: Path) -> None:
    made = result(0.3)
    assert made["replicates"].dtype == np.float32
    save_result(made, tmp_path / "r.h5")
    again = load_result(tmp_path / "r.h5")
    assert again["replicates"].encoding["zlib"]
    ends = interval(
        again["similarity"].values, again["replicates"].values.astype(float),
        again["group_size"].values,
    )  # fmt: skip
    np.testing.assert_allclose(ends[0], again["lower"], atol=1e-5)
    np.testing.assert_allclose(ends[1], again["upper"], atol=1e-5)
