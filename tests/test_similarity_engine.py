"""All pairs at once: the cut of the samples changes nothing; intervals are what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from similarity_reference import cka as reference_cka
from similarity_reference import gram, hsic

from repsim.errors import UserError
from repsim.similarity import (
    ArrayRepresentation,
    cka_pairs,
    hsic_pairs,
    interval,
    similarity_sums,
    standard_error,
)
from repsim.similarity.exact import exact_gram, exact_rows
from repsim.similarity.grams import ArrayGram, centred_gram
from repsim.similarity.products import sample_products
from repsim.similarity.tiles import assign_groups, plan_tiles

WIDTHS = (7, 300, 40, 120)
LITTLE = 2**16  # bytes: tiles of twenty rows, nothing kept


def arrays(n: int, widths: Sequence[int] = WIDTHS, seed: int = 0) -> list[np.ndarray]:
    """Representations that share variation, one of them in float16, one far from zero."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 4))
    found = []
    for position, width in enumerate(widths):
        values = shared @ rng.normal(size=(4, width)) + 2 * rng.normal(size=(n, width))
        found.append((values + 100 * (position == 1)).astype(np.float32))
    found[-1] = found[-1].astype(np.float16)
    return found


def representations(n: int, **options: object) -> list[ArrayRepresentation]:
    return [
        ArrayRepresentation.from_array(one, layer=str(i))
        for i, one in enumerate(arrays(n, **options))  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf:0.7"])
@given(n=st.integers(8, 70), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_every_pair_equals_float64_whatever_the_tiles(
    estimator: str, kernel: str, n: int, seed: int
) -> None:
    layers = arrays(n, seed=seed)
    expected = np.array([[reference_cka(x, y, estimator, kernel) for y in layers] for x in layers])
    for memory in (LITTLE, 2**30):
        pairs = cka_pairs(
            representations(n, seed=seed), estimator=estimator, kernel=kernel, memory=memory
        )
        np.testing.assert_allclose(pairs.value, expected, atol=2e-5)
        np.testing.assert_array_equal(pairs.value, pairs.value.T)


@pytest.mark.parametrize("estimator", ["debiased", "biased", "minibatch"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_memory_and_groups_change_nothing(estimator: str, kernel: str) -> None:
    layers = representations(213)
    options = {"estimator": estimator, "kernel": kernel}
    if estimator == "minibatch":
        options |= {"batch_size": 50}  # type: ignore[dict-item]
    whole = cka_pairs(layers, **options)
    assert whole.replicates is not None
    for memory in (LITTLE, 2**19, 2**21, 2**34):
        other = cka_pairs(layers, memory=memory, **options)
        np.testing.assert_allclose(other.value, whole.value, atol=1e-6)
        np.testing.assert_allclose(other.replicates, whole.replicates, atol=1e-6)
    for groups in (1, 2, 7, 30):
        other = cka_pairs(layers, groups=groups, **options)
        np.testing.assert_allclose(other.value, whole.value, atol=1e-6)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("kernel", ["linear", "rbf:0.7"])
@pytest.mark.parametrize("memory", [LITTLE, 2**30])
@pytest.mark.parametrize("widths", [WIDTHS, (3, 5)])
def test_a_replicate_is_the_value_without_its_group(
    estimator: str, kernel: str, memory: int, widths: tuple[int, ...]
) -> None:
    n, groups = 57, 5
    pairs = hsic_pairs(
        representations(n, widths=widths),
        estimator=estimator, kernel=kernel, groups=groups, memory=memory,
    )  # fmt: skip
    assert pairs.replicates is not None
    assert pairs.replicates.shape == (groups, len(widths), len(widths))
    group_of = assign_groups(n, groups)
    # The bandwidth and the centre of all samples: the latter does not matter.
    kernels = [gram(one, kernel) for one in arrays(n, widths)]
    scale = np.sqrt(np.diag([hsic(K, K, estimator) for K in kernels]).diagonal())
    for group in range(groups):
        stay = np.ix_(group_of != group, group_of != group)
        expected = np.array([[hsic(K[stay], L[stay], estimator) for L in kernels] for K in kernels])
        unit = np.outer(scale, scale)
        np.testing.assert_allclose(pairs.replicates[group] / unit, expected / unit, atol=2e-5)


def test_minibatch_replicates_leave_batches_out() -> None:
    layers = representations(90)
    pairs = hsic_pairs(layers, estimator="minibatch", batch_size=12, groups=3)
    assert pairs.attributes["batches"] == 7
    assert pairs.sizes.tolist() == [3, 2, 2]
    assert any("the last 6 of 90 samples" in note for note in pairs.notes)
    assert pairs.replicates is not None
    stay = np.concatenate([np.arange(b * 12, b * 12 + 12) for b in (0, 2, 3, 5, 6)])
    rest = [ArrayRepresentation(one.values[stay]) for one in layers]
    expected = hsic_pairs(rest, estimator="minibatch", batch_size=12, groups=1)
    np.testing.assert_allclose(pairs.replicates[1], expected.value, rtol=1e-6)


# Groups and tiles


@given(samples=st.integers(2, 400), groups=st.integers(1, 12))
@settings(deadline=None)
def test_groups_are_of_one_size_and_of_mixed_content(samples: int, groups: int) -> None:
    group_of = assign_groups(samples, groups)
    sizes = np.bincount(group_of, minlength=groups)
    assert len(sizes) == groups
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("labels", [np.arange(1000) % 10, np.arange(1000) // 100])
def test_no_group_is_a_class_however_the_rows_are_sorted(labels: NDArray[np.int64]) -> None:
    group_of = assign_groups(1000, 10)
    table = np.zeros((10, 10), int)
    np.add.at(table, (group_of, labels), 1)
    assert table.max() < 25


@given(
    samples=st.integers(4, 5000),
    features=st.lists(st.integers(1, 70_000), min_size=1, max_size=30),
    memory=st.integers(2**20, 2**33),
)
@settings(deadline=None, max_examples=60)
@example(samples=2081, features=[1], memory=2**20)  # room for the tile, not for a row beside it
def test_tiles_cover_the_samples_and_keep_to_the_memory(
    samples: int, features: list[int], memory: int
) -> None:
    groups = min(10, samples)
    plan = plan_tiles(samples, features, groups, memory)
    assert [start for start, _ in plan.tiles[1:]] == [stop for _, stop in plan.tiles[:-1]]
    assert (plan.tiles[0][0], plan.tiles[-1][1]) == (0, samples)
    seen = np.concatenate(
        [start + order[~padded] for (start, _), order, padded in
         zip(plan.tiles, plan.order, plan.padded, strict=True)]
    )  # fmt: skip
    np.testing.assert_array_equal(np.sort(seen), np.arange(samples))
    group = np.tile(np.repeat(np.arange(groups), plan.block), len(plan.tiles))
    np.testing.assert_array_equal(plan.group_of[seen], group[~np.concatenate(plan.padded)])
    rows = plan.block * groups
    kept = 4 * rows * len(plan.tiles) * sum(features[position] for position in plan.keep)
    taken = 4 * rows * (rows * len(features) * 0.55 + 3 * max(features)) + kept
    assert taken <= memory or rows <= 2 * groups
    # With room for whole tiles, two more while they are made, the row sums and all activations,
    # everything stays.
    tiles = 4 * rows * (rows * (len(features) + 2) + 3 * max(features))
    sums = 8 * samples * len(features) * groups
    everything = 4 * rows * len(plan.tiles) * sum(features)
    if tiles + sums + everything <= memory and len(plan.tiles) > 1:
        assert len(plan.keep) == len(features)


class Counting(ArrayRepresentation):
    """Counts how often each row is read."""

    reads: np.ndarray

    def rows(self, start: int, stop: int) -> np.ndarray:
        if not hasattr(self, "reads"):
            object.__setattr__(self, "reads", np.zeros(self.samples, int))
        self.reads[start:stop] += 1
        return super().rows(start, stop)


def test_activations_are_read_once_where_they_fit() -> None:
    layers = [Counting(one.values) for one in representations(100, widths=(90, 300))]
    cka_pairs(layers)
    assert all((one.reads == 1).all() for one in layers)
    streamed = [Counting(one.values) for one in representations(100, widths=(90, 300))]
    cka_pairs(streamed, memory=LITTLE)
    assert all((one.reads == 6).all() for one in streamed)  # five tiles of twenty, and the norms


def test_the_gram_form_serves_all_as_soon_as_one_is_wide() -> None:
    assert similarity_sums(representations(500, widths=(3, 9, 20))).form == "covariance"
    assert similarity_sums(representations(500, widths=(3, 9, 2000))).form == "gram"
    assert similarity_sums(representations(500, widths=(3, 9)), kernel="rbf").form == "gram"


def test_progress_ends_at_its_total() -> None:
    for options in ({}, {"memory": LITTLE}, {"estimator": "minibatch", "batch_size": 20}):
        seen: list[tuple[int, int]] = []
        cka_pairs(
            representations(100), progress=lambda *pair, seen=seen: seen.append(pair), **options
        )
        assert seen[-1][0] == seen[-1][1]
        assert [done for done, _ in seen] == list(range(1, len(seen) + 1))


def test_reduced_float32_products_are_not_used() -> None:
    layers = representations(100)
    before = cka_pairs(layers).value
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_allclose(cka_pairs(layers).value, before, atol=1e-7)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("widths", [WIDTHS, (3, 5)])
@pytest.mark.parametrize("memory", [LITTLE, 2**30])
def test_gpu_gives_the_same(kernel: str, widths: tuple[int, ...], memory: int) -> None:
    layers = representations(213, widths=widths)
    here = cka_pairs(layers, kernel=kernel)
    there = cka_pairs(layers, kernel=kernel, device="cuda", memory=memory)
    np.testing.assert_allclose(there.value, here.value, atol=1e-6)
    np.testing.assert_allclose(there.replicates, here.replicates, atol=1e-6)


@pytest.mark.slow
def test_ten_thousand_samples_stay_within_the_memory() -> None:
    script = """
import resource
import numpy as np
from repsim.similarity import ArrayRepresentation, cka_pairs

class Made(ArrayRepresentation):
    samples, features = 10_000, 3000
    def rows(self, start, stop):
        rows = np.random.default_rng(start).standard_normal((stop - start, 1), dtype=np.float32)
        return np.broadcast_to(rows, (stop - start, 3000)).copy()

little = np.random.default_rng(0).normal(size=(500, 3000))
cka_pairs([ArrayRepresentation(little)] * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cka_pairs([Made(np.empty(0), layer=str(i)) for i in range(3)], memory=100 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    # What is freed goes back at once: what the allocator might keep is not the engine's.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=settings
    )
    assert float(run.stdout) < 110  # MiB; all activations are 340, a Gram matrix of all is 380


def test_no_copy_of_the_activations_is_left_behind() -> None:
    layers = representations(300, widths=(500, 500))
    cka_pairs(layers)
    tracemalloc.start()
    cka_pairs(layers)
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 300 * 500 * 4


# What is said of layers that have no similarity


def test_a_constant_layer_is_nan_and_named_and_the_others_stay() -> None:
    layers = arrays(60)
    layers[2][:] = 3.7
    named = [ArrayRepresentation.from_array(one, layer=f"l{i}") for i, one in enumerate(layers)]
    for kernel in ("linear", "rbf"):
        for memory in (LITTLE, 2**30):
            pairs = cka_pairs(named, kernel=kernel, memory=memory)
            assert np.isnan(pairs.value[2]).all()
            assert np.isnan(pairs.value[:, 2]).all()
            rest = np.delete(np.delete(pairs.value, 2, 0), 2, 1)
            assert np.isfinite(rest).all()
            assert pairs.notes == ["layer l2 (clean, model) is nan: constant activations"]


def test_a_layer_constant_in_some_batches_only_still_has_a_value() -> None:
    layers = arrays(60)
    layers[0][:20] = 1
    named = [ArrayRepresentation.from_array(one) for one in layers]
    pairs = cka_pairs(named, estimator="minibatch", batch_size=20)
    assert np.isfinite(pairs.value).all()
    assert not any("nan" in note for note in pairs.notes)


def test_rbf_without_a_median_distance_is_nan_and_says_why() -> None:
    layers = arrays(60)
    layers[0][:50] = 0
    named = [ArrayRepresentation.from_array(one) for one in layers]
    pairs = cka_pairs(named, kernel="rbf")
    assert np.isnan(pairs.value[0]).all()
    assert "half of the distances" in pairs.notes[0]


def active_for_one(n: int, at: int, width: int, seed: int) -> np.ndarray:
    values = np.zeros((n, width), np.float32)
    values[at] = np.random.default_rng(seed).uniform(0, 1, width)
    return values


@pytest.mark.parametrize("memory", [LITTLE, 2**20, 2**30])
@pytest.mark.parametrize("widths", [(16, 10), (200, 300)])
@pytest.mark.parametrize(("n", "at"), [(61, 0), (128, 0), (200, 7), (500, 0), (1000, 7)])
def test_layers_active_for_one_sample_are_nan(
    n: int, at: int, widths: tuple[int, int], memory: int
) -> None:
    """U-centring leaves nothing of them, in either form, with one tile or many."""
    both = [active_for_one(n, at, width, seed) for seed, width in enumerate(widths)]
    both.append(np.random.default_rng(2).normal(size=(n, 9)).astype(np.float32))
    pairs = cka_pairs([ArrayRepresentation.from_array(one) for one in both], memory=memory)
    assert np.isnan(pairs.value[:2]).all()
    assert pairs.value[2, 2] == pytest.approx(1)
    assert pairs.replicates is not None
    assert np.isnan(pairs.replicates[:, :2]).all()
    assert sum("no variation that the debiased estimator can see" in n for n in pairs.notes) == 2


def test_a_layer_active_for_two_samples_has_a_value_and_no_replicate_without_one() -> None:
    layers = [active_for_one(100, 3, 200, seed) for seed in (0, 1)]
    for seed, layer in enumerate(layers):
        layer[50] = np.random.default_rng(5 + seed).uniform(0, 1, 200)
    pairs = cka_pairs([ArrayRepresentation.from_array(one) for one in layers])
    assert pairs.value[0, 1] == pytest.approx(reference_cka(*layers), abs=1e-6)
    assert pairs.replicates is not None
    group_of = assign_groups(100, 10)
    gone = {group_of[3], group_of[50]}
    for group in range(10):
        assert np.isnan(pairs.replicates[group, 0, 1]) == (group in gone)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize(("n", "widths"), [(203, (500, 400)), (400, (30, 20)), (200, (16, 10))])
@pytest.mark.parametrize("size", [100, 1e3, 1e4, 1e5])
def test_a_sample_that_outweighs_all_others(
    estimator: str, n: int, widths: tuple[int, int], size: float
) -> None:
    """Values and replicates, in both forms, as precise as without it."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, 5))
    both = []
    for width in widths:
        values = shared @ rng.normal(size=(5, width)) + rng.normal(size=(n, width))
        values[7] *= size
        both.append(values.astype(np.float32))
    X, Y = both
    pairs = cka_pairs([ArrayRepresentation.from_array(one) for one in both], estimator=estimator)
    assert pairs.value[0, 1] == pytest.approx(reference_cka(X, Y, estimator), abs=1e-6)
    group_of = assign_groups(n, 10)
    without = [
        reference_cka(X[group_of != group], Y[group_of != group], estimator) for group in range(10)
    ]
    assert pairs.replicates is not None
    np.testing.assert_allclose(pairs.replicates[:, 0, 1], without, atol=1e-6)


def test_ordinary_comparisons_stay_in_float32() -> None:
    pairs = cka_pairs(representations(100))
    assert "precision" not in pairs.attributes
    layers = representations(100)
    layers[0].values[3] *= 1e5
    assert cka_pairs(layers).attributes["precision"] == "float64"


@pytest.mark.parametrize("estimator", ["debiased", "biased", "minibatch"])
@pytest.mark.parametrize(("n", "active"), [(61, 5), (200, 50), (500, 100)])
def test_rbf_knows_equal_samples_from_rounding(n: int, active: int, estimator: str) -> None:
    """More than half of the distances are 0; the float32 products of the rest leave 1e-3."""
    rng = np.random.default_rng(0)
    X = np.zeros((n, 500), np.float32)
    X[rng.permutation(n)[:active]] = rng.normal(size=(active, 500))
    layers = [X, rng.normal(size=(n, 500)).astype(np.float32)]
    size = {"batch_size": n} if estimator == "minibatch" else {}
    pairs = cka_pairs(
        [ArrayRepresentation.from_array(one) for one in layers],
        kernel="rbf", estimator=estimator, **size,
    )  # fmt: skip
    assert np.isnan(pairs.value[0]).all()
    assert pairs.value[1, 1] == pytest.approx(1)
    assert any("half of the distances" in note for note in pairs.notes)
    inner = [ArrayGram(gram(one).astype(np.float32), 500) for one in layers]
    assert np.isnan(cka_pairs(inner, kernel="rbf", estimator=estimator, **size).value[0]).all()


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_rbf_of_near_duplicates_far_from_zero_and_beside_an_outlier(estimator: str) -> None:
    """Differences of 1e-3 beside norms of 1e4 are no rounding."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(60, 30))
    X = shared + 1e-3 * rng.normal(size=(60, 30)) + 1e3
    X[:, 1:] = np.repeat(X[::2, 1:], 2, axis=0) + 1e-3 * rng.normal(size=(60, 29))
    X[5] *= 30
    Y = shared**2
    both = [ArrayRepresentation.from_array(one) for one in (X, Y)]
    found = cka_pairs(both, kernel="rbf:0.3", estimator=estimator)
    assert found.value[0, 1] == pytest.approx(reference_cka(X, Y, estimator, "rbf:0.3"), abs=1e-6)


def test_constant_is_relative_to_the_type_of_the_activations() -> None:
    """One rule for arrays, stores, Gram matrices and running networks."""
    rng = np.random.default_rng(0)
    rounding = (5 + 1e-7 * rng.normal(size=(100, 50))).astype(np.float32)
    far = 1e6 + rng.normal(size=(100, 50))
    assert len(np.unique(rounding)) > 1
    for memory in (LITTLE, 2**30):
        pairs = cka_pairs(
            [ArrayRepresentation.from_array(one) for one in (rounding, far)], memory=memory
        )
        assert np.isnan(pairs.value[0]).all()
        assert pairs.notes == ["layer layer (clean, model) is nan: constant activations"]
        assert pairs.value[1, 1] == pytest.approx(1)
    for of_batch in (lambda x: sample_products(torch.from_numpy(x)), lambda x: centred_gram(
        ArrayRepresentation.from_array(x)
    )):  # fmt: skip
        assert not of_batch(rounding).any()
        np.testing.assert_allclose(of_batch(far), gram(far), atol=1e-6 * gram(far).max())
    assert not exact_gram(ArrayRepresentation.from_array(rounding), torch.device("cpu")).any()
    assert not exact_rows(ArrayRepresentation.from_array(rounding), torch.device("cpu")).any()


def test_few_samples_have_fewer_groups_or_no_intervals() -> None:
    pairs = cka_pairs(representations(6), groups=10)
    assert pairs.sizes.tolist() == [1] * 6
    assert "6 jackknife groups" in pairs.notes[0]
    four = cka_pairs(representations(4), groups=10)
    assert four.replicates is None
    assert "no intervals" in four.notes[0]
    assert cka_pairs(representations(50), groups=1).replicates is None


def test_other_samples_are_refused() -> None:
    with pytest.raises(UserError, match="same samples on both sides"):
        cka_pairs([*representations(20), *representations(21)])
    with pytest.raises(UserError, match="got none"):
        cka_pairs([])
    with pytest.raises(UserError, match="groups expects"):
        cka_pairs(representations(20), groups=0)


# Intervals


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=50)
    replicates = np.array([np.delete(values, i).mean() for i in range(50)])
    sizes = np.ones(50, dtype=np.int64)
    error = standard_error(values.mean(), replicates, sizes)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    lower, upper = interval(values.mean(), replicates, sizes)
    assert (upper + lower) / 2 == pytest.approx(values.mean())
    assert (upper - lower) / 2 == pytest.approx(2.0095752 * error)  # t, 49 degrees of freedom


def test_jackknife_of_equal_groups_is_the_usual_formula_and_unequal_ones_are_weighted() -> None:
    rng = np.random.default_rng(1)
    replicates = rng.normal(size=(6, 3, 2))
    usual = np.sqrt(5 / 6 * ((replicates - replicates.mean(0)) ** 2).sum(0))
    found = standard_error(np.zeros((3, 2)), replicates, np.full(6, 9))
    np.testing.assert_allclose(found, usual)
    # A mean in groups of unequal size: the expected variance is that of the mean.
    group_of = np.repeat(np.arange(5), [10, 10, 10, 10, 25])
    errors = []
    for _ in range(2000):
        values = rng.normal(size=65)
        without = np.array([values[group_of != g].mean() for g in range(5)])
        errors.append(standard_error(values.mean(), without, np.bincount(group_of)) ** 2)
    assert np.mean(errors) == pytest.approx(1 / 65, rel=0.1)


def test_intervals_cover_the_true_value_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(5, 20)), rng.normal(size=(5, 15))
    # For linear maps with noise the population's CKA is known from the covariances.
    true = np.sum((A.T @ B) ** 2) / np.sqrt(
        np.sum((A.T @ A + 4 * np.eye(20)) ** 2) * np.sum((B.T @ B + 4 * np.eye(15)) ** 2)
    )
    covered = 0
    for _ in range(200):
        Z = rng.normal(size=(120, 5))
        X = Z @ A + 2 * rng.normal(size=(120, 20))
        Y = Z @ B + 2 * rng.normal(size=(120, 15))
        pairs = cka_pairs([ArrayRepresentation(X), ArrayRepresentation(Y)])
        lower, upper = interval(pairs.value, pairs.replicates, pairs.sizes)
        covered += lower[0, 1] <= true <= upper[0, 1]
    assert 0.90 <= covered / 200 <= 0.99


def test_nothing_is_clamped() -> None:
    layers = [np.random.default_rng(seed).normal(size=(40, 100)) for seed in range(6)]
    pairs = cka_pairs([ArrayRepresentation(one) for one in layers])
    lower, upper = interval(pairs.value, pairs.replicates, pairs.sizes)
    assert pairs.value.min() < 0
    assert lower.min() < pairs.value.min()
    np.testing.assert_allclose(lower.diagonal(), 1, atol=1e-9)
    np.testing.assert_allclose(upper.diagonal(), 1, atol=1e-9)
    few = np.random.default_rng(0).normal(size=(8, 3))
    close = cka_pairs(
        [ArrayRepresentation(few), ArrayRepresentation(few + 0.3 * layers[0][:8, :3])]
    )
    assert interval(close.value, close.replicates, close.sizes)[1][0, 1] > 1
