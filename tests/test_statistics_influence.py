"""The value without each image is the value of the others, computed anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_reference import cka as reference_cka
from similarity_reference import gram, hsic

from repsim.errors import UserError
from repsim.pair import Images, influence_table
from repsim.similarity import ArrayRepresentation, Representation
from repsim.similarity.grams import ArrayGram
from repsim.similarity.influence import influence
from repsim.similarity.strata import strata_of


def pair(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 7)) + 5
    return X, X @ rng.normal(size=(7, 9)) + rng.normal(size=(n, 9))


def of(*values: np.ndarray) -> list[Representation]:
    return [ArrayRepresentation(v, f"l{i}") for i, v in enumerate(values)]


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@settings(max_examples=15, deadline=None)
@given(n=st.integers(6, 25), seed=st.integers(0, 1000))
def test_it_is_recomputation(estimator: str, n: int, seed: int) -> None:
    X, Y = pair(n, seed)
    found = influence(of(X), of(Y), estimator=estimator)
    assert found.value[0] == pytest.approx(reference_cka(X, Y, estimator), abs=1e-6)
    without = [reference_cka(np.delete(X, i, 0), np.delete(Y, i, 0), estimator) for i in range(n)]
    np.testing.assert_allclose(found.without[:, 0], without, atol=2e-6)
    np.testing.assert_array_equal(found.change, found.without - found.value)


def test_of_gram_matrices_too_and_of_several_layers() -> None:
    X, Y = pair(20)
    Z = np.tanh(Y)
    grams = [ArrayGram(gram(v).astype(np.float32), 9, f"l{i}") for i, v in enumerate((X, Y, Z))]
    found = influence(grams[:2], grams[1:])
    expected = influence(of(X, Y), of(Y, Z))
    assert found.without.shape == (20, 2)
    np.testing.assert_allclose(found.without, expected.without, atol=1e-6)
    np.testing.assert_allclose(found.change[:, 1], influence(of(Y), of(Z)).change[:, 0], atol=1e-6)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_within_classes(estimator: str) -> None:
    """Classes of unequal size; one has the least number, and leaves the sum with an image less."""
    X, Y = pair(19)
    labels = np.array([0] * 4 + [1] * 9 + [2] * 6)
    least = 4 if estimator == "debiased" else 2

    def within(X: np.ndarray, Y: np.ndarray, labels: np.ndarray) -> float:
        sums = np.zeros(3)
        for label in range(3):
            rows = labels == label
            if rows.sum() >= least:
                K, L = gram(X[rows]), gram(Y[rows])
                each = [hsic(K, L, estimator), hsic(K, K, estimator), hsic(L, L, estimator)]
                sums += rows.sum() * np.array(each)
        return float(sums[0] / np.sqrt(sums[1] * sums[2]))

    strata = strata_of(19, estimator, labels=labels)
    found = influence(of(X), of(Y), strata=strata, estimator=estimator)
    assert found.value[0] == pytest.approx(within(X, Y, labels), abs=1e-6)
    without = [
        within(np.delete(X, i, 0), np.delete(Y, i, 0), np.delete(labels, i)) for i in range(19)
    ]
    np.testing.assert_allclose(found.without[:, 0], without, atol=2e-6)


def test_an_image_that_fills_no_batch_changes_nothing() -> None:
    X, Y = pair(23)
    strata = strata_of(23, "minibatch", batch_size=10)
    found = influence(of(X), of(Y), strata=strata, estimator="minibatch")
    assert (found.change[20:] == 0).all()
    assert (found.change[:20] != 0).all()


def test_an_outlier_is_found() -> None:
    """CKA hangs on images far from the others: two that agree about one image look alike."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(50, 10)), rng.normal(size=(50, 10))
    X[17] *= 30
    Y[17] *= 30
    found = influence(of(X), of(Y), estimator="biased")
    assert found.value[0] > 0.9
    assert np.abs(found.change[:, 0]).argmax() == 17
    assert found.without[17, 0] < 0.5


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("size", [30, 1e3, 1e5])
@pytest.mark.parametrize(("n", "width"), [(200, 100), (60, 7)])
def test_without_an_outlier_is_what_the_others_have(
    estimator: str, size: float, n: int, width: int
) -> None:
    """An image that makes all of the similarity: what is left without it is 1e-12 of the sums."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(n, 5))
    X, Y = (shared @ rng.normal(size=(5, width)) + rng.normal(size=(n, width)) for _ in range(2))
    X[3] *= size
    Y[3] *= size
    found = influence(of(X), of(Y), estimator=estimator)
    for image in (3, 4):
        others = np.delete(np.arange(n), image)
        expected = reference_cka(X[others], Y[others], estimator)
        assert found.without[image, 0] == pytest.approx(expected, abs=1e-7)


def test_without_one_of_two_active_images_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    X = np.zeros((40, 20))
    X[[3, 9]] = rng.uniform(0, 1, (2, 20))
    found = influence(of(X), of(X**2))
    assert np.isnan(found.without[[3, 9], 0]).all()
    assert found.without[0, 0] == pytest.approx(reference_cka(X[1:], X[1:] ** 2), abs=1e-7)


def test_the_table_is_sorted_and_leaves_out_what_is_not_defined() -> None:
    X, Y = pair(20)
    flat = np.ones((20, 3))
    images = Images(
        np.arange(20, dtype=np.uint64) + np.uint64(2**63), np.arange(20) * 3, np.arange(20) % 2
    )
    table = influence_table(of(X, flat, Y), of(Y, X, np.tanh(Y)), images)
    assert list(table) == ["index", "id", "label", "l0", "l1", "l2", "mean"]
    assert table["l1"].isna().all()
    np.testing.assert_allclose(table["mean"], (table["l0"] + table["l2"]) / 2)
    assert (np.diff(table["mean"].abs()) <= 0).all()
    row = table[table["index"] == 12].iloc[0]
    assert row["id"] == 2**63 + 4
    assert row["l0"] == pytest.approx(influence(of(X), of(Y)).change[4, 0])


def test_what_is_refused() -> None:
    X, Y = pair(4)
    with pytest.raises(UserError, match="at least 5"):
        influence(of(X), of(Y))
    X, Y = pair(50)
    with pytest.raises(UserError, match="memory"):
        influence(of(X), of(Y), memory=10_000)
    with pytest.raises(UserError, match="same samples"):
        influence(of(X), of(Y[:-1]))
