"""Labelled matrices, their summary, and rows matched by sample id."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from similarity_reference import cka as reference_cka

from repsim.compare import AllPairs, compare, compare_all, match
from repsim.errors import UserError
from repsim.progress import Silent, Task
from repsim.similarity import MEASURES, ArrayRepresentation, interval
from repsim.similarity.tiles import assign_groups

N = 80
LAYERS = ("stem", "block1", "block2", "block3", "block4", "pool", "features")


def side(
    condition: str, *, model: str = "net", noise: float = 0.0, n: int = N, layers: int = 7
) -> list[ArrayRepresentation]:
    """Layers that drift away from the first with depth, plus noise that grows with depth."""
    rng = np.random.default_rng(0)
    extra = np.random.default_rng([len(condition), len(model)])
    values, found = rng.normal(size=(n, 30)), []
    for depth, layer in enumerate(LAYERS[:layers]):
        width = 30 + 5 * depth
        values = np.tanh(values @ rng.normal(size=(values.shape[1], width)) / 4)
        moved = values + noise * depth * extra.normal(size=values.shape)
        found.append(ArrayRepresentation(moved.astype(np.float32), layer, condition, model))
    return found


@pytest.fixture(scope="module")
def everything() -> AllPairs:
    return compare_all([*side("clean"), *side("noise", noise=0.01), *side("pgd", noise=0.3)])


def test_a_matrix_has_its_values_labels_and_attributes() -> None:
    rows, columns = side("clean"), side("pgd", noise=0.3, layers=5)
    result = compare(rows, columns)
    assert result["similarity"].dims == ("x", "y")
    assert result["similarity"].dtype == np.float64
    expected = [[reference_cka(x.values, y.values) for y in columns] for x in rows]
    np.testing.assert_allclose(result["similarity"], expected, atol=1e-6)
    assert result["x_layer"].values.tolist() == list(LAYERS)
    assert result["y_layer"].values.tolist() == list(LAYERS[:5])
    assert set(result["x_condition"].values) == {"clean"}
    assert set(result["y_condition"].values) == {"pgd"}
    assert set(result["y_model"].values) == {"net"}
    assert (result["lower"] < result["similarity"]).values.mean() > 0.9
    assert (result["upper"] > result["similarity"]).values.mean() > 0.9
    assert result.attrs["measure"] == "cka"
    assert result.attrs["estimator"] == "debiased"
    assert result.attrs["kernel"] == "linear"
    assert result.attrs["samples"] == N
    assert json.loads(result.attrs["notes"]) == []
    assert json.loads(result.attrs["summary"]) == {"samples": N}  # other layers: no alignment
    provenance = json.loads(result.attrs["provenance"])
    assert provenance["interval"].startswith("95%, delete-one-group jackknife over 10 groups")


def test_alignment_is_the_mean_of_the_diagonal_with_its_own_jackknife() -> None:
    rows, columns = side("clean"), side("pgd", noise=0.3)
    result = compare(rows, columns)
    summary = json.loads(result.attrs["summary"])
    diagonal = result["similarity"].values.diagonal()
    assert summary["alignment_mean"] == pytest.approx(diagonal.mean())
    assert summary["alignment_last_third"] == pytest.approx(diagonal[-2:].mean())  # 7 // 3
    assert set(summary) == {
        "samples", "alignment_mean", "alignment_mean_ci",
        "alignment_last_third", "alignment_last_third_ci",
    }  # fmt: skip

    group_of = assign_groups(N, 10)
    without = []
    for group in range(10):
        stay = group_of != group
        pairs = zip(rows[-2:], columns[-2:], strict=True)
        without.append(np.mean([reference_cka(x.values[stay], y.values[stay]) for x, y in pairs]))
    lower, upper = interval(diagonal[-2:].mean(), np.array(without), np.bincount(group_of))
    assert summary["alignment_last_third_ci"] == pytest.approx([lower, upper], abs=1e-5)


def test_long_range_is_the_mean_over_distant_layers() -> None:
    result = compare(side("clean"), side("clean"))
    summary = json.loads(result.attrs["summary"])
    matrix = result["similarity"].values
    distance = np.abs(np.subtract.outer(np.arange(7), np.arange(7)))
    assert summary["long_range"] == pytest.approx(matrix[distance >= 4].mean())  # |i-j| > 3.5
    lower, upper = summary["long_range_ci"]
    assert lower < summary["long_range"] < upper
    assert "alignment_mean" not in summary  # of itself: 1


def test_one_pass_gives_all_matrices_and_numbers(everything: AllPairs) -> None:
    clean, noise, pgd = side("clean"), side("noise", noise=0.01), side("pgd", noise=0.3)
    one = compare(clean, pgd)
    many = everything.matrix("clean", "pgd")
    np.testing.assert_allclose(many["similarity"], one["similarity"], atol=1e-7)
    np.testing.assert_allclose(many["lower"], one["lower"], atol=1e-6)
    assert json.loads(many.attrs["summary"])["alignment_mean"] == pytest.approx(
        json.loads(one.attrs["summary"])["alignment_mean"], abs=1e-7
    )
    control = json.loads(compare(clean, noise).attrs["summary"])
    found = everything.alignment("clean", "noise")
    assert found["alignment_last_third"] == pytest.approx(control["alignment_last_third"], abs=1e-7)
    assert found["alignment_mean"] > 0.99 > everything.alignment("clean", "pgd")["alignment_mean"]
    own = json.loads(compare(pgd, pgd).attrs["summary"])
    assert everything.long_range("pgd")["long_range"] == pytest.approx(own["long_range"], abs=1e-7)
    np.testing.assert_allclose(
        everything.matrix("pgd", "clean")["similarity"], many["similarity"].T, atol=1e-12
    )


def test_sides_of_several_models_are_named_by_both() -> None:
    pairs = compare_all([*side("clean"), *side("clean", model="other", noise=0.2)])
    result = pairs.matrix(("net", "clean"), ("other", "clean"))
    assert set(result["y_model"].values) == {"other"}
    with pytest.raises(UserError, match=r"\(model, condition\).*net, other; got 'clean'"):
        pairs.matrix("clean", "clean")
    with pytest.raises(UserError, match="near: net:clean"):
        pairs.long_range(("net", "cleen"))


def test_alignment_of_other_layers_is_refused() -> None:
    pairs = compare_all([*side("clean"), *side("pgd", layers=5)])
    with pytest.raises(UserError, match="same layers on both sides; got 7 and 5"):
        pairs.alignment("clean", "pgd")


def test_a_single_layer_has_alignment_and_no_long_range() -> None:
    pairs = compare_all([*side("clean", layers=1), *side("pgd", noise=1, layers=1)])
    found = pairs.alignment("clean", "pgd")
    assert found["alignment_mean"] == found["alignment_last_third"]
    assert pairs.long_range("clean") == {"long_range": None, "long_range_ci": None}


def test_a_constant_layer_leaves_the_means_and_is_noted() -> None:
    rows, columns = side("clean"), side("pgd", noise=0.3)
    columns[3].values[:] = 1
    result = compare(rows, columns)
    assert np.isnan(result["similarity"][:, 3]).all()
    assert np.isnan(result["lower"][:, 3]).all()
    diagonal = np.delete(result["similarity"].values.diagonal(), 3)
    summary = json.loads(result.attrs["summary"])
    assert summary["alignment_mean"] == pytest.approx(diagonal.mean())
    assert np.isfinite(summary["alignment_mean_ci"]).all()
    (note,) = json.loads(result.attrs["notes"])
    assert note == "layer block3 (pgd, net) is nan: constant activations"


def test_without_groups_there_are_no_intervals() -> None:
    result = compare(side("clean"), side("pgd", noise=0.1), groups=1)
    assert set(result.data_vars) == {"similarity"}
    assert "alignment_mean_ci" not in json.loads(result.attrs["summary"])
    assert json.loads(result.attrs["provenance"])["interval"] is None


def test_minibatch_and_rbf_are_recorded() -> None:
    result = compare(
        side("clean"), side("pgd", noise=0.1),
        estimator="minibatch", kernel="rbf:0.8", batch_size=30,
    )  # fmt: skip
    assert (result.attrs["estimator"], result.attrs["kernel"]) == ("minibatch", "rbf")
    provenance = json.loads(result.attrs["provenance"])
    assert (provenance["bandwidth"], provenance["batch_size"]) == (0.8, 30)
    assert "groups of batches" in provenance["interval"]
    assert "20 of 80 samples" in json.loads(result.attrs["notes"])[0]


# Measures of one's own


def test_a_function_in_a_file_is_a_measure(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def first_feature(X, Y):\n"
        "    return np.corrcoef(X[:, 0], Y[:, 0])[0, 1] + len(X[0])\n"
    )
    rows, columns = side("clean"), side("pgd", noise=0.3, layers=4)
    result = compare(rows, columns, measure=f"{tmp_path / 'mine.py'}:first_feature")
    x, y = rows[2].values, columns[1].values
    expected = np.corrcoef(x[:, 0], y[:, 0])[0, 1] + 40
    assert float(result["similarity"][2, 1]) == pytest.approx(expected)
    assert np.isfinite(result["similarity"]).all()
    assert "lower" not in result
    assert result.attrs["measure"].endswith("mine.py:first_feature")
    assert "once for each of 28 pairs" in json.loads(result.attrs["notes"])[0]


@pytest.mark.parametrize("memory", [1, 2**30])
def test_a_function_need_not_be_symmetric_and_sees_only_wanted_pairs(memory: int) -> None:
    calls = []

    def difference(X: np.ndarray, Y: np.ndarray) -> int:
        calls.append((X.shape, Y.shape))
        return X.shape[1] - Y.shape[1]

    rows, columns = side("clean", layers=3), side("pgd", layers=2)
    result = compare(rows, columns, measure=difference, memory=memory)
    assert result["similarity"].values.tolist() == [[0, -5], [5, 0], [10, 5]]
    assert len(calls) == 6
    assert result.attrs["measure"] == "difference"
    own = compare_all(rows, measure=difference).matrix("clean", "clean")
    assert own["similarity"].values[0, 2] == -own["similarity"].values[2, 0] == -10


def test_a_measure_that_fails_says_on_which_pair() -> None:
    def fails(X: np.ndarray, Y: np.ndarray) -> float:
        raise KeyError("seven")

    def text(X: np.ndarray, Y: np.ndarray) -> str:
        return "much"

    rows = side("clean", layers=2)
    with pytest.raises(UserError, match=r"fails.*layer stem \(clean, net\).*KeyError: 'seven'"):
        compare(rows, rows, measure=fails)
    with pytest.raises(UserError, match=r"text expects to return a number.*ValueError"):
        compare(rows, rows, measure=text)
    with pytest.raises(UserError, match="belong to the measure cka"):
        compare(rows, rows, measure=text, kernel="rbf")
    with pytest.raises(UserError, match=r"--measure expects one of .*got 'kka'; near: cka"):
        compare(rows, rows, measure="kka")
    with pytest.raises(UserError, match=r"a measure expects a function.*repsim.errors:__doc__"):
        compare(rows, rows, measure="repsim.errors:__doc__")


def test_a_measure_object_is_taken_as_it_is() -> None:
    rows = side("clean", layers=3)
    np.testing.assert_array_equal(
        compare(rows, rows, measure=MEASURES["cka"])["similarity"],
        compare(rows, rows)["similarity"],
    )


# What is refused


def test_other_samples_or_none_are_refused() -> None:
    with pytest.raises(UserError, match="same samples on both sides"):
        compare(side("clean"), side("pgd", n=N - 1))
    with pytest.raises(UserError, match="at least one layer"):
        compare(side("clean"), [])
    with pytest.raises(UserError, match="at least one layer"):
        compare_all([])
    with pytest.raises(UserError, match="at least 4 samples; got 3"):
        compare(side("clean", n=3), side("pgd", n=3))


def test_two_representations_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"different names.*layer block1 \(clean, net\)"):
        compare(side("clean"), side("clean", noise=0.1))
    with pytest.raises(UserError, match="different names"):
        compare(side("clean"), side("clean", n=N - 2))


def test_not_finite_is_named() -> None:
    columns = side("pgd")
    columns[4].values[9, 2] = np.nan
    with pytest.raises(UserError, match=r"layer block4 \(pgd, net\).*sample 9 has NaN"):
        compare(side("clean"), columns)


def test_progress_is_told() -> None:
    class Heard(Silent):
        def __init__(self) -> None:
            self.what, self.total, self.done, self.ended = "", 0, 0, False

        @contextmanager
        def task(self, what: str, total: int, *, done: int = 0, unit: str = "it") -> Any:
            self.what, self.total = what, total
            yield Task(lambda n: setattr(self, "done", self.done + n))
            self.ended = True

    heard = Heard()
    compare(side("clean"), side("pgd"), progress=heard)
    assert heard.what == "cka"
    assert heard.done == heard.total > 0
    assert heard.ended


# Rows matched by id


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_match_puts_both_in_the_order_of_the_first(ids: list[int], random: Any) -> None:
    a = np.array(ids, dtype=np.uint64) + np.uint64(2**63)
    b = np.array(random.sample(ids, len(ids)), dtype=np.uint64) + np.uint64(2**63)
    index_a, index_b = match(a, b)
    np.testing.assert_array_equal(index_a, np.arange(len(a)))
    np.testing.assert_array_equal(np.sort(index_b), np.arange(len(a)))
    np.testing.assert_array_equal(a[index_a], b[index_b])
    for value in set(a.tolist()):  # the k-th of equal images is the k-th
        assert (np.diff(index_b[a == value]) > 0).all()


def test_match_refuses_other_samples() -> None:
    a, b = np.arange(10, dtype=np.uint64), np.arange(3, 11, dtype=np.uint64)
    with pytest.raises(UserError, match=r"got 10 and 8, 7 of them in both; extract both with"):
        match(a, b)
    with pytest.raises(UserError, match="got 3 and 2, 2 of them in both"):
        match(np.array([1, 2, 2], dtype=np.uint64), np.array([2, 1], dtype=np.uint64))


def test_matched_rows_give_the_values_of_one_order() -> None:
    order = np.random.default_rng(3).permutation(N)
    ids = np.random.default_rng(4).integers(0, 2**63, N).astype(np.uint64)
    rows, columns = side("clean"), side("pgd", noise=0.2)
    index_a, index_b = match(ids, ids[order])
    shuffled = [ArrayRepresentation(one.values[order], one.layer, "pgd", "net") for one in columns]
    back = [ArrayRepresentation(one.values[index_b], one.layer, "pgd", "net") for one in shuffled]
    np.testing.assert_array_equal(
        compare(rows, back)["similarity"], compare(rows, columns)["similarity"]
    )
    wrong = compare(rows, shuffled)["similarity"].values.diagonal()
    assert wrong.max() < 0.5
    np.testing.assert_array_equal(index_a, np.arange(N))
