"""CKA and HSIC of two arrays: against float64, against another library, and what theory says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from similarity_reference import cka as reference_cka
from similarity_reference import gram, minibatch_cka
from similarity_reference import hsic as reference_hsic

from repsim.errors import UserError
from repsim.similarity import cka, hsic

ESTIMATORS = ("debiased", "biased")
KERNELS = ("linear", "rbf:0.5", "rbf:1")


def related(
    n: int, p: int, q: int, *, seed: int = 0, offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 representations that share some of their variation."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 5))
    X = shared @ rng.normal(size=(5, p)) + rng.normal(size=(n, p)) + offset
    Y = shared @ rng.normal(size=(5, q)) + rng.normal(size=(n, q)) + offset
    return X.astype(np.float32), Y.astype(np.float32)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", KERNELS)
@given(n=st.integers(6, 40), p=st.integers(1, 60), q=st.integers(1, 60), seed=st.integers(0, 10**6))
@example(n=6, p=1, q=1, seed=0)
@example(n=40, p=2, q=3, seed=0)
@settings(max_examples=15, deadline=None)
def test_equals_the_definition_in_float64(
    estimator: str, kernel: str, n: int, p: int, q: int, seed: int
) -> None:
    X, Y = related(n, p, q, seed=seed)
    expected = reference_cka(X, Y, estimator, kernel)
    assert cka(X, Y, estimator=estimator, kernel=kernel) == pytest.approx(expected, abs=2e-5)
    K, L = gram(X, kernel), gram(Y, kernel)
    scale = np.sqrt(reference_hsic(K, K, estimator) * reference_hsic(L, L, estimator))
    got = hsic(X, Y, estimator=estimator, kernel=kernel)
    assert got == pytest.approx(reference_hsic(K, L, estimator), abs=2e-5 * scale)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_four_samples_are_enough(estimator: str) -> None:
    X, Y = related(4, 30, 20)
    assert cka(X, Y, estimator=estimator) == pytest.approx(reference_cka(X, Y, estimator), abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_accurate_to_a_millionth_at_a_large_offset(estimator: str) -> None:
    X, Y = related(200, 3000, 3000, offset=1e4)
    expected = reference_cka(X, Y, estimator)
    assert cka(X, Y, estimator=estimator) == pytest.approx(expected, rel=1e-6)


def test_offset_that_only_float64_can_hold() -> None:
    X, Y = related(100, 50, 40)
    X64 = X.astype(np.float64)
    assert cka(X64 + 1e8, Y) == pytest.approx(reference_cka(X64, Y), rel=1e-6)


@pytest.mark.parametrize("narrow", [True, False])
def test_features_that_differ_by_a_million_in_scale(narrow: bool) -> None:
    p = 6 if narrow else 500  # covariance form, Gram form
    X, Y = related(150, p, p)
    X *= np.logspace(-3, 3, p, dtype=np.float32)
    assert cka(X, Y) == pytest.approx(reference_cka(X, Y), rel=1e-5)


def test_one_sample_far_away_from_the_others() -> None:
    X, Y = related(150, 300, 300)
    X[0] *= 1e5
    assert cka(X, Y) == pytest.approx(reference_cka(X, Y), abs=1e-6)


def test_duplicated_samples() -> None:
    X, Y = related(60, 100, 90)
    X, Y = np.repeat(X, 3, axis=0), np.repeat(Y, 3, axis=0)
    for kernel in KERNELS:
        assert cka(X, Y, kernel=kernel) == pytest.approx(
            reference_cka(X, Y, kernel=kernel), abs=1e-5
        )


def test_float16_torch_and_images_are_taken_as_they_are() -> None:
    X, Y = related(80, 48, 30)
    half = X.astype(np.float16)
    expected = reference_cka(half, Y)
    assert cka(half, Y) == pytest.approx(expected, abs=1e-6)
    tensor = torch.from_numpy(half).view(80, 3, 4, 4).requires_grad_()
    assert cka(tensor, torch.from_numpy(Y)) == pytest.approx(expected, abs=1e-6)
    bfloat = torch.from_numpy(X).bfloat16()
    assert cka(bfloat, Y) == pytest.approx(reference_cka(bfloat.float().numpy(), Y), abs=1e-6)
    whole = (X * 10).astype(np.int64)
    assert cka(whole, Y) == pytest.approx(reference_cka(whole, Y), abs=1e-6)


def test_arguments_are_left_as_they_were() -> None:
    X, Y = related(50, 20, 10)
    X.flags.writeable = False
    before = Y.copy()
    cka(X, Y)
    np.testing.assert_array_equal(Y, before)


# Theorems


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "minibatch"])
@pytest.mark.parametrize("kernel", KERNELS)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-4, 1e4), offset=st.floats(-100, 100))
@settings(max_examples=8, deadline=None)
def test_invariant_to_rotation_scale_and_offset(
    estimator: str, kernel: str, seed: int, scale: float, offset: float
) -> None:
    X, Y = related(40, 12, 300, seed=seed)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    moved = (X @ rotation + offset * rng.normal(size=12)) * scale
    options = {"estimator": estimator, "kernel": kernel}
    assert cka(moved, Y, **options) == pytest.approx(cka(X, Y, **options), abs=1e-5)
    assert cka(moved, X, **options) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "minibatch"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_with_itself_symmetric_and_blind_to_the_order_of_samples(
    estimator: str, kernel: str
) -> None:
    X, Y = related(60, 100, 30)
    options = {"estimator": estimator, "kernel": kernel}
    assert cka(X, X, **options) == pytest.approx(1, abs=1e-9)
    assert cka(X, Y, **options) == pytest.approx(cka(Y, X, **options), abs=1e-9)
    order = np.random.default_rng(0).permutation(60)
    assert cka(X[order], Y[order], **options) == pytest.approx(cka(X, Y, **options), abs=1e-6)


def test_not_invariant_to_an_invertible_map() -> None:
    X, Y = related(60, 20, 30)
    stretched = X * np.logspace(-1, 1, 20)
    assert abs(cka(stretched, Y) - cka(X, Y)) > 0.01


@pytest.mark.parametrize("kernel", ["linear", "rbf:1"])
def test_unrelated_representations_are_near_zero_only_when_debiased(kernel: str) -> None:
    values = {"debiased": [], "biased": []}
    for seed in range(30):
        X = np.random.default_rng(seed).normal(size=(50, 200))
        Y = np.random.default_rng(seed + 1000).normal(size=(50, 200))
        for estimator, found in values.items():
            found.append(cka(X, Y, estimator=estimator, kernel=kernel))
    error = np.std(values["debiased"]) / np.sqrt(30)
    assert abs(np.mean(values["debiased"])) < 4 * error < 0.05
    assert min(values["debiased"]) < 0  # not clamped
    assert min(values["biased"]) > 0.5


# Minibatches


def test_minibatch_with_one_batch_is_the_debiased_value() -> None:
    X, Y = related(90, 100, 40)
    one = cka(X, Y, estimator="minibatch", batch_size=90)
    assert one == pytest.approx(cka(X, Y), abs=1e-12)
    assert cka(X, Y, estimator="minibatch") == pytest.approx(one, abs=1e-12)  # n < 256


@pytest.mark.parametrize("size", [8, 20, 33])
def test_minibatch_averages_first_and_leaves_a_ragged_batch_out(size: int) -> None:
    X, Y = related(100, 100, 40)
    expected = minibatch_cka(X, Y, size)
    assert cka(X, Y, estimator="minibatch", batch_size=size) == pytest.approx(expected, abs=1e-6)
    assert abs(cka(X, Y) - expected) > 1e-4  # another number


@pytest.mark.filterwarnings("ignore:Dataloader for Model 2")
def test_minibatch_agrees_with_torch_cka() -> None:
    from torch.utils.data import DataLoader, TensorDataset
    from torch_cka import CKA

    torch.manual_seed(0)
    a = torch.nn.Sequential(torch.nn.Linear(12, 30), torch.nn.Tanh(), torch.nn.Linear(30, 8))
    b = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh())
    inputs = torch.randn(64, 12)
    loader = DataLoader(TensorDataset(inputs, torch.zeros(64)), batch_size=32)
    theirs = CKA(a, b, model1_name="a", model2_name="b", device="cpu")
    theirs.compare(loader)
    matrix = theirs.export()["CKA"].double()

    with torch.no_grad():
        layers_a = [a[:stop](inputs) for stop in (1, 2, 3)]
        layers_b = [b[:stop](inputs) for stop in (1, 2)]
    # Its rows are in the order in which modules finish: the whole network comes last.
    assert matrix.shape == (4, 3)
    for i, X in enumerate(layers_a):
        for j, Y in enumerate(layers_b):
            got = cka(X, Y, estimator="minibatch", batch_size=32)
            assert got == pytest.approx(float(matrix[i, j]), abs=1e-5)


def test_covariance_and_gram_form_agree() -> None:
    from repsim.similarity import ArrayRepresentation, similarity_sums

    rng = np.random.default_rng(0)
    X, Y = related(400, 10, 14)
    wide = np.concatenate([Y, np.zeros((400, 2000), np.float32)], axis=1)  # the same kernel
    narrow = similarity_sums([ArrayRepresentation.from_array(one) for one in (X, Y)])
    other = similarity_sums([ArrayRepresentation.from_array(one) for one in (X, wide)])
    assert (narrow.form, other.form) == ("covariance", "gram")
    for estimator in ESTIMATORS:
        for group in (None, *rng.choice(10, 3, replace=False)):
            np.testing.assert_allclose(
                narrow.hsic(estimator, without=group),
                other.hsic(estimator, without=group),
                rtol=1e-5,
            )


# What cannot be compared


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_samples(n: int) -> None:
    X, Y = related(4, 5, 6)
    with pytest.raises(UserError, match=f"at least 4 samples; got {n}"):
        cka(X[:n], Y[:n])


def test_biased_needs_two_samples() -> None:
    X, Y = related(4, 5, 6)
    assert cka(X[:2], Y[:2], estimator="biased") == pytest.approx(1, abs=1e-6)  # one direction each
    with pytest.raises(UserError, match="at least 2 samples; got 1"):
        cka(X[:1], Y[:1], estimator="biased")


def test_other_numbers_of_samples() -> None:
    X, Y = related(10, 5, 6)
    with pytest.raises(UserError, match=r"same samples.*has 10, .* 9"):
        cka(X, Y[:9])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("p", [2, 500])
def test_numbers_that_are_not_finite_name_layer_and_sample(bad: float, p: int) -> None:
    X, Y = related(30, p, p)
    Y[17, 1] = bad
    with pytest.raises(UserError, match=r"layer Y.*sample 17 has NaN or infinity"):
        cka(X, Y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("estimator", ["debiased", "biased", "minibatch"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_numbers_of_any_size_can_be_compared(
    dtype: type[np.floating], estimator: str, kernel: str
) -> None:
    """Isotropic scaling is a declared invariance: squares leave float32's range, CKA does not."""
    X, Y = related(30, 20, 20)
    expected = cka(X, Y, estimator=estimator, kernel=kernel)
    scales = [1e-25, 1e-20, 1e-15, 1e15, 1e20, 1e30]
    if dtype is np.float64 and estimator != "minibatch":  # which adds up HSIC of batches
        scales += [1e-150, 1e150]
    for scale in scales:
        small = (X.astype(np.float64) * scale).astype(dtype)
        found = cka(small, Y, estimator=estimator, kernel=kernel)
        assert found == pytest.approx(expected, abs=2e-6)


def test_hsic_is_in_units_of_the_activations_whatever_their_size() -> None:
    X, Y = related(30, 20, 20)
    for scale in (1e-20, 1e20):
        found = hsic(X.astype(np.float64) * scale, Y)
        assert found == pytest.approx(hsic(X, Y) * scale**2, rel=1e-5)


@pytest.mark.parametrize("shape", [(10,), (10, 0)])
def test_arrays_without_features(shape: tuple[int, ...]) -> None:
    X, _ = related(10, 5, 6)
    with pytest.raises(UserError, match="at least one feature"):
        cka(X, np.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "debias"}, "estimator expects one of.*near: debiased"),
        ({"kernel": "rbff"}, "kernel expects.*near: rbf"),
        ({"kernel": "linear:2"}, "kernel expects"),
        ({"kernel": "rbf:0"}, "positive fraction"),
        ({"kernel": "rbf:half"}, "positive fraction"),
        ({"batch_size": 5}, "belongs to the minibatch estimator"),
        ({"estimator": "minibatch", "batch_size": 3}, "from 4 to 10"),
        ({"estimator": "minibatch", "batch_size": 11}, "from 4 to 10"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, object], message: str) -> None:
    X, Y = related(10, 5, 6)
    with pytest.raises(UserError, match=message):
        cka(X, Y, **options)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "minibatch"])
@pytest.mark.parametrize("kernel", ["linear", "rbf:0.5"])
@pytest.mark.parametrize("p", [3, 400])
def test_constant_activations_are_nan(estimator: str, kernel: str, p: int) -> None:
    X, Y = related(30, p, p)
    X[:] = 0.1 + np.arange(p)
    assert np.isnan(cka(X, Y, estimator=estimator, kernel=kernel))
    assert not np.isnan(cka(Y, Y, estimator=estimator, kernel=kernel))


def test_a_layer_that_one_sample_activates_is_nan_when_debiased() -> None:
    X, Y = related(30, 300, 300)
    X[:] = 0
    X[4, 7] = 1.0
    # Its kernel is zero off the diagonal up to row and column terms: 0/0, not rounding noise.
    assert np.isnan(cka(X, Y))
    assert cka(X, Y, estimator="biased") == pytest.approx(reference_cka(X, Y, "biased"), abs=1e-6)
