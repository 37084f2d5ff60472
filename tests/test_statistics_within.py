"""Some of the images: subsets, those that an attack fooled, and similarity within classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from similarity_reference import cka as reference_cka
from similarity_reference import gram, hsic

from repsim.compare import compare, compare_all
from repsim.errors import UserError
from repsim.similarity import ArrayRepresentation, Representation, cka_pairs
from repsim.similarity.grams import ArrayGram
from repsim.similarity.jackknife import standard_error
from repsim.similarity.subset import images_among, in_memory, subset
from repsim.similarity.tiles import assign_groups
from repsim.similarity.within import jackknife_parts, within_class_cka

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 6)) + 8
Y = X @ RNG.normal(size=(6, 11)) + 2 * RNG.normal(size=(70, 11))
LABELS = RNG.choice(4, size=70, p=[0.5, 0.25, 0.21, 0.04])  # the last has 3 images


def both() -> list[Representation]:
    return [ArrayRepresentation(X, "x"), ArrayRepresentation(Y, "y")]


def reference(X: np.ndarray, Y: np.ndarray, labels: np.ndarray, estimator: str) -> float:
    least, sums = 4 if estimator == "debiased" else 2, np.zeros(3)
    for label in np.unique(labels):
        rows = labels == label
        if rows.sum() >= least:
            K, L = gram(X[rows]), gram(Y[rows])
            each = [hsic(K, L, estimator), hsic(K, K, estimator), hsic(L, L, estimator)]
            sums += rows.sum() * np.array(each)
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_hsic_is_summed_over_classes_and_divided_last(estimator: str) -> None:
    assert (LABELS == 3).sum() == 3
    found = within_class_cka(both(), LABELS, estimator=estimator, groups=5)
    assert found.value[0, 1] == pytest.approx(reference(X, Y, LABELS, estimator), abs=1e-6)
    np.testing.assert_allclose(found.value.diagonal(), 1)
    left_out = "1 classes of fewer than 4 images, 3 images in all, are left out"
    assert [left_out in note for note in found.notes] == [True] * (estimator == "debiased")
    assert found.attributes["classes"] == (3 if estimator == "debiased" else 4)


@pytest.mark.parametrize("labels", [LABELS, np.sort(LABELS), np.arange(70) % 9])
@pytest.mark.parametrize("groups", [2, 10])
def test_a_replicate_is_the_value_without_small_classes_and_parts_of_large_ones(
    labels: np.ndarray, groups: int
) -> None:
    """Classes of 7 or 8 images stay or go as a whole; groups that are empty are none."""
    found = within_class_cka(both(), labels, groups=groups)
    group_of = np.full(70, -1)
    classes = [rows for c in np.unique(labels) if len(rows := np.flatnonzero(labels == c)) >= 4]
    parts, _ = jackknife_parts([len(rows) for rows in classes], groups, 4)
    for rows, part in zip(classes, parts, strict=True):
        small = len(rows) < max(2 * groups, 12)
        assert isinstance(part, int) == small
        group_of[rows] = part if small else part[assign_groups(len(rows), groups)]  # type: ignore[index]
    without = [
        reference(X[group_of != g], Y[group_of != g], labels[group_of != g], "debiased")
        for g in range(groups)
        if (group_of == g).any()
    ]
    assert found.replicates is not None
    np.testing.assert_allclose(found.replicates[:, 0, 1], without, atol=2e-6)
    sizes = np.bincount(group_of[group_of >= 0])
    np.testing.assert_array_equal(found.sizes, sizes[sizes > 0])


@given(
    sizes=st.lists(st.integers(4, 60), min_size=1, max_size=40),
    groups=st.integers(2, 12),
    least=st.sampled_from([2, 4]),
)
def test_groups_take_even_shares_and_leave_no_class_with_too_few(
    sizes: list[int], groups: int, least: int
) -> None:
    parts, _ = jackknife_parts(sizes, groups, least)
    load = np.zeros(groups)
    for size, part in zip(sizes, parts, strict=True):
        if isinstance(part, int):
            load[part] += size
        else:
            counts = np.bincount(assign_groups(size, groups), minlength=groups)
            assert sorted(part) == list(range(groups))
            assert size - counts.max() >= least
            load[part] += counts
    assert load.sum() == sum(sizes)
    if min(sizes) >= 2 * groups and min(sizes) >= 3 * least:  # all are parted
        assert load.max() - load.min() <= 1
    elif (load > 0).all():
        assert load.max() - load.min() <= max(2 * groups, 3 * least)


@pytest.mark.parametrize(
    ("sizes", "groups"), [([5] * 30, 10), ([4] * 25 + [20] * 2, 10), ([20] * 6, 10)]
)
def test_the_standard_error_is_that_of_many_draws(sizes: list[int], groups: int) -> None:
    rng = np.random.default_rng(7)
    A, B = rng.normal(size=(6, 12)), rng.normal(size=(6, 15))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    values, errors = [], []
    for _ in range(25):
        Z = rng.normal(size=(len(labels), 6))
        left = Z @ A + rng.normal(size=(len(labels), 12))
        right = np.maximum(Z @ B + rng.normal(size=(len(labels), 15)), 0)
        sides = [ArrayRepresentation(left, "x"), ArrayRepresentation(right, "y")]
        found = within_class_cka(sides, labels, groups=groups)
        assert found.replicates is not None
        values.append(found.value[0, 1])
        errors.append(standard_error(found.value[0, 1], found.replicates[:, 0, 1], found.sizes))
    assert 0.6 < np.mean(errors) / np.std(values) < 1.5


def test_few_small_classes_lose_images_and_it_is_said() -> None:
    labels = np.arange(70) % 4  # 17 or 18 images, below 2·10
    found = within_class_cka(both(), labels)
    assert found.replicates is not None
    assert len(found.replicates) == 10
    assert any("too wide" in note for note in found.notes)
    assert not any("too wide" in note for note in within_class_cka(both(), np.arange(70) % 5).notes)


def test_with_classes_of_one_size_it_is_minibatch_cka() -> None:
    batches = np.repeat(np.arange(7), 10)
    minibatch = cka_pairs(both(), estimator="minibatch", batch_size=10)
    found = within_class_cka(both(), batches)
    np.testing.assert_allclose(found.value, minibatch.value, atol=1e-7)


def test_what_only_the_class_explains_is_gone() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 5
    A, B = (5 * rng.normal(size=(5, 8))[labels] + rng.normal(size=(200, 8)) for _ in range(2))
    sides = [ArrayRepresentation(A, "x"), ArrayRepresentation(B, "y")]
    whole, inside = compare_all(sides).pairs, compare_all(sides, within=labels).pairs
    assert whole.value[0, 1] > 0.5
    assert abs(inside.value[0, 1]) < 0.05


def test_gram_matrices_and_little_memory_give_the_same() -> None:
    grams = [ArrayGram(gram(v).astype(np.float32), v.shape[1], n) for v, n in ((X, "x"), (Y, "y"))]
    expected = within_class_cka(both(), LABELS)
    for found in (within_class_cka(grams, LABELS), within_class_cka(both(), LABELS, memory=1)):
        np.testing.assert_allclose(found.value, expected.value, atol=1e-6)
        np.testing.assert_allclose(found.replicates, expected.replicates, atol=1e-6)


def test_a_layer_constant_within_classes_is_nan_and_said() -> None:
    only_class = np.eye(4)[LABELS]
    reps = [*both(), ArrayRepresentation(only_class, "head")]
    found = within_class_cka(reps, LABELS)
    assert np.isnan(found.value[2]).all()
    assert found.value[0, 1] == pytest.approx(reference(X, Y, LABELS, "debiased"), abs=1e-6)
    assert any("layer head" in note and "is nan" in note for note in found.notes)


def test_within_is_recorded_and_refused_where_it_cannot_be() -> None:
    rows, columns = [ArrayRepresentation(X, "x")], [ArrayRepresentation(Y, "x", "pgd")]
    result = compare(rows, columns, within=LABELS, ids=np.arange(70, dtype=np.uint64))
    assert float(result["similarity"][0, 0]) == pytest.approx(
        reference(X, Y, LABELS, "debiased"), abs=1e-6
    )
    assert '"within": "class"' in result.attrs["provenance"]
    assert (result["lower"] < result["similarity"]).all()
    with pytest.raises(UserError, match="debiased or biased"):
        compare(rows, columns, within=LABELS, estimator="minibatch")
    with pytest.raises(UserError, match="belongs to the measure cka"):
        compare(rows, columns, within=LABELS, measure=lambda X, Y: 1.0)
    with pytest.raises(UserError, match="at least 4 images; the largest of 70 has 1"):
        compare(rows, columns, within=np.arange(70))


# Subsets


@given(
    chosen=st.lists(st.integers(0, 599), unique=True, max_size=60).map(sorted),
    start=st.integers(0, 30),
    length=st.integers(0, 60),
)
def test_rows_of_a_subset_are_the_chosen_ones(chosen: list[int], start: int, length: int) -> None:
    values = np.arange(1200.0).reshape(600, 2)
    one = subset(ArrayRepresentation(values, "a", "b", "c"), np.array(chosen, dtype=np.int64))
    assert (one.samples, one.features) == (len(chosen), 2)
    assert (one.layer, one.condition, one.model) == ("a", "b", "c")
    expected = values[chosen][start : start + length]
    np.testing.assert_array_equal(one.rows(start, start + length), expected)
    np.testing.assert_array_equal(in_memory(one).rows(0, one.samples), values[chosen])


def test_a_subset_is_compared_as_those_images_alone() -> None:
    chosen = np.array([1, 2, 8, 9, 10, 33, 34, 50, 69])
    parts = [subset(one, chosen) for one in both()]
    grams = [ArrayGram(gram(v).astype(np.float32), v.shape[1], n) for v, n in ((X, "x"), (Y, "y"))]
    expected = reference_cka(X[chosen], Y[chosen])
    for kind in (parts, [subset(one, chosen) for one in grams]):
        assert cka_pairs(kind).value[0, 1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("chosen", [[3, 2], [2, 2], [-1, 3], [5, 70]])
def test_positions_must_ascend_and_exist(chosen: list[int]) -> None:
    with pytest.raises(UserError, match="ascending positions from 0 to 69"):
        subset(both()[0], np.array(chosen))


def test_fooled_and_unfooled_part_the_right_ones() -> None:
    right = [np.array([1, 1, 1, 1, 0, 0], bool), np.array([1, 1, 1, 0, 1, 0], bool)]
    attacked = [np.array([0, 1, 0, 0, 0, 0], bool), np.array([0, 1, 1, 0, 0, 1], bool)]
    assert images_among("right", right[:1], []).tolist() == [0, 1, 2, 3]
    assert images_among("fooled", right[:1], attacked[:1]).tolist() == [0, 2, 3]
    assert images_among("unfooled", right[:1], attacked[:1]).tolist() == [1]
    # Of two networks: right for both, fooled by both attacks.
    assert images_among("right", right, attacked).tolist() == [0, 1, 2]
    assert images_among("fooled", right, attacked).tolist() == [0]
    assert images_among("unfooled", right, attacked).tolist() == [1]
    with pytest.raises(UserError, match="expects an attack"):
        images_among("fooled", right, [])
    with pytest.raises(UserError, match="fooled, unfooled, right"):
        images_among("foold", right, attacked)
