"""The permutation null: the naive loop's numbers, uniform p where there is nothing to find."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from similarity_reference import gram, hsic

from repsim.compare import compare, compare_all, with_null
from repsim.errors import UserError
from repsim.similarity import ArrayRepresentation, Representation
from repsim.similarity import permutation as module
from repsim.similarity.grams import ArrayGram
from repsim.similarity.permutation import permutation_null
from repsim.similarity.strata import strata_of

N = 30


def related(seed: int = 0, n: int = N, noise: float = 3.0) -> tuple[list[np.ndarray], ...]:
    """Two rows' and three columns' activations, related to one another weakly, far from 0."""
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n, 6)) + 10, rng.normal(size=(n, 4))]
    Y = [
        X[0] @ rng.normal(size=(6, 5)) + noise * rng.normal(size=(n, 5)),
        rng.normal(size=(n, 40)),
        X[1] + noise * rng.normal(size=(n, 4)),
    ]
    return X, Y


def layers(values: list[np.ndarray], condition: str = "clean") -> list[Representation]:
    return [ArrayRepresentation(v, f"l{i}", condition) for i, v in enumerate(values)]


@pytest.mark.parametrize("kernel", ["linear", "rbf:0.7"])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_it_is_what_a_loop_over_pairs_and_permutations_gives(estimator: str, kernel: str) -> None:
    X, Y = related()
    found = permutation_null(
        layers(X), layers(Y), permutations=39, seed=5, estimator=estimator, kernel=kernel
    )
    K, L = ([gram(v, kernel) for v in side] for side in (X, Y))

    def matrix(order: np.ndarray) -> list[list[float]]:
        """Row `order[i]` of Y beside row i of X."""
        return [
            [
                hsic(k, m[np.ix_(order, order)], estimator)
                / np.sqrt(hsic(k, k, estimator) * hsic(m, m, estimator))
                for m in L
            ]
            for k in K
        ]

    draws = np.random.default_rng(5)
    value = np.array(matrix(np.arange(N)))
    null = np.array([matrix(draws.permutation(N)) for _ in range(39)])
    np.testing.assert_allclose(found.value, value, atol=1e-6)
    np.testing.assert_allclose(found.p, (1 + (null >= value).sum(0)) / 40)
    np.testing.assert_allclose(found.null_95, np.sort(null, axis=0)[-2], atol=1e-6)  # .05·40 = 2
    largest = np.sort(null.reshape(39, -1).max(1))[-2]
    assert found.null_95_max == pytest.approx(largest, abs=1e-6)
    assert ((found.value > found.null_95) == (found.p <= 0.05)).all()


@pytest.mark.parametrize("strip", [1, 4 * N * 3 * 7])
def test_the_size_of_strips_changes_nothing(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = related()
    whole = permutation_null(layers(X), layers(Y), permutations=19)
    monkeypatch.setattr(module, "_STRIP", strip)
    found = permutation_null(layers(X), layers(Y), permutations=19)
    np.testing.assert_allclose(found.value, whole.value, atol=1e-6)
    np.testing.assert_allclose(found.null_95, whole.null_95, atol=1e-6)


def test_p_is_uniform_where_there_is_nothing_to_find() -> None:
    p = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        X, Y = rng.normal(size=(16, 3)), rng.normal(size=(16, 3)) ** 3
        null = permutation_null(layers([X]), layers([Y]), permutations=59, seed=seed)
        p.append(float(null.p[0, 0]))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert min(p) >= 1 / 60


def test_the_family_wise_level_is_above_each_cells_and_finds_what_is_there() -> None:
    X, Y = related(noise=0.3)
    null = permutation_null(layers(X), layers(Y), permutations=199)
    assert null.null_95_max >= null.null_95.max()
    assert null.p[0, 0] == null.p[1, 2] == 1 / 200
    assert (null.value > null.null_95_max).tolist() == [[True, False, False], [False, False, True]]


def test_gram_matrices_give_the_same() -> None:
    X, Y = related()
    grams = [
        [ArrayGram(gram(v).astype(np.float32), v.shape[1], f"l{i}") for i, v in enumerate(side)]
        for side in (X, Y)
    ]
    found = permutation_null(*grams, permutations=19)
    expected = permutation_null(layers(X), layers(Y), permutations=19)
    np.testing.assert_allclose(found.value, expected.value, atol=1e-6)
    np.testing.assert_allclose(found.null_95, expected.null_95, atol=1e-6)


def test_within_classes_only_what_is_not_the_class_counts() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    X, Y = (4 * rng.normal(size=(4, 8))[labels] + rng.normal(size=(60, 8)) for _ in range(2))
    options = {"permutations": 199}
    free = permutation_null(layers([X]), layers([Y]), **options)
    strata = strata_of(60, "debiased", labels=labels)
    inside = permutation_null(layers([X]), layers([Y]), strata=strata, **options)
    assert free.p[0, 0] == 1 / 200
    assert inside.p[0, 0] > 0.05
    sums = np.zeros(3)
    for rows in strata:
        K, L = gram(X[rows]), gram(Y[rows])
        sums += [hsic(K, L), hsic(K, K), hsic(L, L)]
    assert inside.value[0, 0] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"estimator": "biased"}, {"estimator": "minibatch", "batch_size": 7}]
)
def test_a_results_null_is_of_its_own_numbers(options: dict[str, object]) -> None:
    X, Y = related()
    rows, columns = layers(X), layers(Y, "pgd")
    plain = compare(rows, columns, **options)
    result = with_null(plain, rows, columns, permutations=39, seed=1)
    null = permutation_null(
        rows, columns, permutations=39, seed=1,
        strata=strata_of(N, plain.attrs["estimator"], batch_size=7),
        estimator=plain.attrs["estimator"],
    )  # fmt: skip
    np.testing.assert_allclose(null.value, plain["similarity"], atol=1e-6)
    np.testing.assert_array_equal(result["p"], null.p)
    np.testing.assert_array_equal(result["null_95"], null.null_95)
    assert float(result["null_95_max"]) == null.null_95_max
    assert '"cells": 6' in result.attrs["summary"]
    assert '"seed": 1' in result.attrs["provenance"]


def test_a_layer_that_does_not_vary_has_no_p_and_spoils_no_other() -> None:
    X, Y = related()
    without = permutation_null(layers(X), layers(Y[:1]), permutations=19)
    found = permutation_null(layers(X), layers([Y[0], np.full((N, 3), 7.1)]), permutations=19)
    assert np.isnan(found.p[:, 1]).all()
    assert np.isnan(found.null_95[:, 1]).all()
    np.testing.assert_array_equal(found.p[:, :1], without.p)
    assert found.null_95_max == pytest.approx(without.null_95_max, abs=1e-6)
    nothing = permutation_null(layers([np.ones((N, 2))]), layers(Y), permutations=19)
    assert math.isnan(nothing.null_95_max)


def test_what_is_refused() -> None:
    X, Y = related()
    with pytest.raises(UserError, match="at least 19"):
        permutation_null(layers(X), layers(Y), permutations=18)
    with pytest.raises(UserError, match=r"5 representations of 30 images.*more memory"):
        permutation_null(layers(X), layers(Y), permutations=19, memory=10_000)
    result = compare(layers(X), layers(Y, "pgd"), measure=lambda X, Y: 1.0)
    with pytest.raises(UserError, match="belongs to the measure cka"):
        with_null(result, layers(X), layers(Y), permutations=19)
    with pytest.raises(UserError, match="same samples"):
        permutation_null(layers(X), layers([Y[0][:-1]]), permutations=19)
    assert compare_all(layers(X)).duplicate_of == [None, None]


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_a_sample_that_outweighs_all_others_leaves_the_value_as_it_is(size: float) -> None:
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(203, 500)) for _ in range(2))
    X[7] *= size
    Y[7] *= size
    found = permutation_null(layers([X]), layers([Y]), permutations=19)
    K, L = gram(X), gram(Y)
    expected = hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))
    assert found.value[0, 0] == pytest.approx(expected, abs=1e-6)


def test_layers_with_nothing_to_permute_are_nan() -> None:
    """Active for one sample; or, with an RBF, equal for most."""
    rng = np.random.default_rng(0)
    one, most = np.zeros((61, 20)), np.zeros((61, 20))
    one[3] = rng.uniform(0, 1, 20)
    most[:10] = rng.normal(size=(10, 20))
    Y = [rng.normal(size=(61, 5))]
    for values, kernel in ((one, "linear"), (most, "rbf")):
        found = permutation_null(layers([values]), layers(Y), permutations=19, kernel=kernel)
        assert np.isnan(found.value).all()
        assert np.isnan(found.p).all()
