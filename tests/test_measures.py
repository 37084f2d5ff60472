"""Every measure: against float64 references, and what it declares of itself."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_reference import REFERENCES, cosine, nearest
from scipy.spatial import procrustes as scipy_procrustes
from sklearn.neighbors import NearestNeighbors

import repsim.similarity as similarity
from repsim.errors import UserError
from repsim.similarity import KNOWN, Invariance
from repsim.similarity.canonical import SVCCA
from repsim.similarity.dissimilarity import squared_distances, with_ties
from repsim.similarity.exact import centred, exact_gram, nuclear_norm
from repsim.similarity.grams import ArrayGram, centred_gram
from repsim.similarity.measure import CKA
from repsim.similarity.neighbours import MutualKNN, Neighbours
from repsim.similarity.prepared import PreparedMeasure
from repsim.similarity.representation import ArrayRepresentation

Array = np.ndarray
PREPARED = {name: one for name, one in KNOWN.items() if isinstance(one, PreparedMeasure)}
OF_LAYERS = [name for name, one in PREPARED.items() if one.declaration.needs != "logits"]
OF_GRAMS = [name for name, one in PREPARED.items() if one.declaration.needs == "gram"]
FULL_RANK = ("cca", "cca-r2", "pwcca", "linear-regression")


def related(n: int, p: int, q: int, *, seed: int = 0, offset: float = 0.0) -> tuple[Array, Array]:
    """Two representations that share some of their variation."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 5))
    X = shared @ rng.normal(size=(5, p)) + rng.normal(size=(n, p)) + offset
    Y = shared @ rng.normal(size=(5, q)) + rng.normal(size=(n, q)) + offset
    return X, Y


def measure(name: str, X: Array, Y: Array) -> float:
    return similarity.cka(X, Y) if name == "cka" else PREPARED[name](X, Y)


# Against the definitions


@pytest.mark.parametrize("name", PREPARED)
@given(n=st.integers(26, 40), p=st.integers(2, 12), q=st.integers(2, 12), seed=st.integers(0, 999))
@settings(max_examples=8, deadline=None)
def test_equals_the_definition_in_float64(name: str, n: int, p: int, q: int, seed: int) -> None:
    q = p if PREPARED[name].declaration.needs == "logits" else q
    X, Y = related(n, p, q, seed=seed)
    assert PREPARED[name](X, Y) == pytest.approx(REFERENCES[name](X, Y), abs=1e-8)


def far(X: Array) -> Array:
    return (X + 1e4).astype(np.float32)


def scaled(X: Array) -> Array:
    return X * np.logspace(-3, 3, X.shape[1])


def repeated(X: Array) -> Array:
    """Samples 3 to 8 are sample 0, sample 9 is sample 1."""
    X = X.copy()
    X[3:9], X[9] = X[0], X[1]
    return X


def with_constants(X: Array) -> Array:
    return np.concatenate([X, np.full((len(X), 3), 0.1), X[:, :1]], 1)


HARD = {
    "narrow": lambda X: X,
    "far": far,
    "scaled": scaled,
    "repeated": repeated,
    "constant and repeated features": with_constants,
    "far and scaled": lambda X: scaled(X) + 1e4,
    "very far": lambda X: X + 1e7,
}


@pytest.mark.parametrize(
    ("name", "width"), [(name, 9) for name in PREPARED] + [(name, 120) for name in OF_GRAMS]
)
@pytest.mark.parametrize("change", HARD)
def test_right_on_data_that_floats_do_not_like(name: str, change: str, width: int) -> None:
    X, Y = related(60, width, width)
    X, Y = HARD[change](X), HARD[change](Y)
    assert PREPARED[name](X, Y) == pytest.approx(REFERENCES[name](X, Y), abs=2e-8)
    assert PREPARED[name](X, Y) == PREPARED[name](torch.from_numpy(X), torch.from_numpy(Y))


@pytest.mark.parametrize("name", FULL_RANK)
def test_a_feature_of_any_size_is_a_direction(name: str) -> None:
    X, Y = related(60, 6, 6)
    size = np.logspace(-9, 9, 6)
    if name in ("pwcca", "linear-regression"):  # what X weighs, or has to explain, is its own
        assert PREPARED[name](X, Y * size) == pytest.approx(PREPARED[name](X, Y), abs=1e-8)
    else:
        assert PREPARED[name](X * size, Y * size) == pytest.approx(PREPARED[name](X, Y), abs=1e-8)


@pytest.mark.parametrize("n", [30, 61, 100])
def test_a_constant_feature_is_no_direction(n: int) -> None:
    X, Y = related(n, 5, 6)
    constants = np.tile([0.1, 1 / 3, 1e4 / 7, 1e9 / 11], (n, 1))
    assert not centred(torch.from_numpy(constants)).any()
    for name in FULL_RANK:
        found = PREPARED[name](X, np.concatenate([constants, Y], 1))
        assert found == pytest.approx(PREPARED[name](X, Y), abs=1e-9)


def test_rounding_does_not_break_ties_of_equal_samples() -> None:
    X, _ = related(40, 9, 9)
    kernel = torch.from_numpy(repeated(X) @ repeated(X).T)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 40)))
    found = with_ties(kernel * (1 + 1e-16 * (noise + noise.T)))
    same = [0, *range(3, 9)]
    assert (found[:, same] == found[:, :1]).all()
    assert (found[:, [1, 9]] == found[:, 1:2]).all()
    torch.testing.assert_close(found, kernel, rtol=1e-12, atol=1e-12)
    assert (squared_distances(found)[same][:, same] == 0).all()


@pytest.mark.parametrize(("n", "p", "q"), [(30, 6, 400), (30, 400, 6), (30, 400, 500), (150, 5, 7)])
@pytest.mark.parametrize("name", OF_GRAMS)
def test_either_side_may_be_the_smaller_one(name: str, n: int, p: int, q: int) -> None:
    if name == "svcca" and max(p, q) > n:
        X, Y = related(n, p, q)
        assert SVCCA(0.8)(X, Y) == pytest.approx(
            REFERENCES[name](X, Y, 0.8),
            abs=1e-8,  # type: ignore[call-arg]
        )
        return
    X, Y = related(n, p, q)
    assert PREPARED[name](X, Y) == pytest.approx(REFERENCES[name](X, Y), abs=1e-8)


def test_settings_change_what_is_computed() -> None:
    X, Y = related(60, 12, 15)
    from measures_reference import jaccard, mutual_knn, svcca
    from scipy.spatial.distance import pdist

    for variance in (0.5, 0.9, 1.0):
        assert similarity.svcca(X, Y, variance=variance) == pytest.approx(svcca(X, Y, variance))
    for k in (1, 5, 58):
        for metric in ("cosine", "euclidean"):
            found = similarity.mutual_knn(X, Y, k=k, metric=metric)
            assert found == pytest.approx(mutual_knn(X, Y, k, metric))
            found = similarity.jaccard(X, Y, k=k, metric=metric)
            assert found == pytest.approx(jaccard(X, Y, k, metric))
        assert similarity.cknna(X, Y, k=k) == pytest.approx(REFERENCES["cknna"](X, Y, k))  # type: ignore[call-arg]
    dissimilarity = {
        "sqeuclidean": lambda Z: pdist(Z, "sqeuclidean"),
        "cosine": lambda Z: (1 - cosine(Z))[np.triu_indices(len(Z), 1)],
    }
    for metric, of in dissimilarity.items():
        found = similarity.rsa(X, Y, metric=metric)
        assert found == pytest.approx(np.corrcoef(of(X), of(Y))[0, 1])
    assert similarity.rsa(X, Y, compare="spearman") == PREPARED["rsa-spearman"](X, Y)
    assert similarity.distance_correlation(X, Y, debiased=True) == PREPARED[
        "distance-correlation-debiased"
    ](X, Y)


def test_the_functions_are_the_measures() -> None:
    X, Y = related(40, 6, 6)
    for name in PREPARED:
        function = getattr(similarity, name.replace("-", "_"), None)
        if function is not None and inspect.isfunction(function):
            assert function(X, Y) == PREPARED[name](X, Y)


def test_scipy_and_scikit_learn_agree() -> None:
    X, Y = related(60, 9, 9)
    _, _, disparity = scipy_procrustes(X, Y)  # 1 - s²
    assert np.cos(similarity.angular_procrustes(X, Y)) ** 2 == pytest.approx(1 - disparity)
    near = [
        NearestNeighbors(n_neighbors=7).fit(Z).kneighbors(return_distance=False) for Z in (X, Y)
    ]
    both = np.mean([len({*a} & {*b}) / 7 for a, b in zip(*near, strict=True)])
    assert similarity.mutual_knn(X, Y, k=7, metric="euclidean") == pytest.approx(both)


@pytest.mark.parametrize("shape", [(50, 50), (50, 80), (80, 50)])
@pytest.mark.parametrize("least", [-1, -12])
def test_a_nuclear_norm_keeps_its_small_singular_values(shape: tuple[int, int], least: int) -> None:
    sizes = np.logspace(0, least, 50)
    matrix = rotation(80)[: shape[0], :50] * sizes @ rotation(80).T[:50, : shape[1]]
    expected = np.linalg.svd(matrix, compute_uv=False).sum()
    found = nuclear_norm(torch.from_numpy(matrix))
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_rotated_shape_has_no_distance_whatever_its_spectrum() -> None:
    X = related(60, 50, 1)[0] * np.logspace(0, -9, 50)
    assert similarity.procrustes(X, X @ rotation(50)) == pytest.approx(0, abs=1e-7)


# What each declares


def rotation(size: int) -> Array:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(size, size)))[0]


def other_distances(X: Array) -> Array:
    """Samples whose distances are the square roots of those of X (Schoenberg 1938: they exist)."""
    square = np.linalg.norm(X[:, None] - X[None], axis=2)
    H = np.eye(len(X)) - 1 / len(X)
    sizes, vectors = np.linalg.eigh(-H @ square @ H / 2)
    return vectors * np.sqrt(np.maximum(sizes, 0))


def changes(name: Invariance, X: Array, Y: Array) -> list[tuple[Array, Array]]:
    """X and Y after the change, of one side or of the other."""
    rng = np.random.default_rng(3)

    def either(change: object) -> list[tuple[Array, Array]]:
        return [(change(X), Y), (X, change(Y))]  # type: ignore[operator]

    match name:
        case Invariance.ORTHOGONAL:
            return either(lambda Z: Z @ rotation(Z.shape[1]))
        case Invariance.SCALING:
            return either(lambda Z: 3.7 * Z)
        case Invariance.LINEAR:
            A = rng.normal(size=(50, 50))
            return either(lambda Z: Z @ A[: Z.shape[1], : Z.shape[1]])
        case Invariance.LINEAR_Y:
            return [(X, Y @ rng.normal(size=(Y.shape[1], Y.shape[1])))]
        case Invariance.TRANSLATION:
            return either(lambda Z: Z + 5 * rng.normal(size=Z.shape[1]))
        case Invariance.FEATURES:
            return either(lambda Z: Z[:, rng.permutation(Z.shape[1])])
        case Invariance.FEATURES_BOTH:
            order = rng.permutation(X.shape[1])
            return [(X[:, order], Y[:, order])]
        case Invariance.SAMPLES:
            order = rng.permutation(len(X))
            return [(X[order], Y[order])]
        case Invariance.SAMPLE_SCALING:
            return either(lambda Z: Z * rng.uniform(0.2, 5, size=(len(Z), 1)))
        case Invariance.SAMPLE_SHIFT:
            return either(lambda Z: Z + 5 * rng.normal(size=(len(Z), 1)))
        case Invariance.DISTANCES:
            return either(other_distances)
        case Invariance.VALUES:
            return either(lambda Z: np.sinh(Z / 3))
    raise AssertionError(name)


def can_be_tried(name: str, invariance: Invariance) -> bool:
    # As many features as samples: nothing that spans can be asked of them.
    return invariance is not Invariance.DISTANCES or name not in (*FULL_RANK, "svcca", *OF_LOGITS)


OF_LOGITS = [name for name in PREPARED if name not in OF_LAYERS]
EVERY = [(name, one) for name in KNOWN for one in Invariance if can_be_tried(name, one)]


@pytest.mark.parametrize(("name", "invariance"), EVERY)
def test_invariant_to_what_it_declares_and_to_nothing_else(
    name: str, invariance: Invariance
) -> None:
    X, Y = related(60, 8, 8)
    before = measure(name, X, Y)
    after = [measure(name, *changed) for changed in changes(invariance, X, Y)]
    if invariance in KNOWN[name].declaration.invariant:
        # CKA's products are float32.
        assert after == pytest.approx([before] * len(after), abs=1e-6 if name == "cka" else 1e-9)
    else:
        assert max(abs(value - before) for value in after) > 1e-3


@pytest.mark.parametrize("name", KNOWN)
def test_range_direction_and_symmetry(name: str) -> None:
    declared = KNOWN[name].declaration
    X, Y = related(60, 8, 8)
    noise = np.random.default_rng(9).normal(size=(60, 8))
    own, alike, unlike = (measure(name, X, Z) for Z in (X, X + 0.3 * noise, noise))
    # Nothing bounds cknna; it is 1 for the same neighbours.
    best, worst = 1 if np.isinf(declared.high) else declared.high, declared.low
    if declared.larger == "less alike":
        best, worst = worst, best
    assert own == pytest.approx(best, abs=1e-6)
    assert abs(own - best) < abs(alike - best) < abs(unlike - best) <= abs(worst - best)
    assert (measure(name, X, Y) == pytest.approx(measure(name, Y, X))) == declared.symmetric
    assert declared.source
    assert declared.cost


def test_the_strongest_invariances_imply_the_others() -> None:
    assert KNOWN["cca"].declaration.strongest == [
        Invariance.LINEAR, Invariance.TRANSLATION, Invariance.SAMPLES
    ]  # fmt: skip
    assert Invariance.SCALING not in KNOWN["disagreement"].declaration.strongest


@given(seed=st.integers(0, 999), n=st.integers(3, 20))
@settings(max_examples=25, deadline=None)
def test_procrustes_distances_are_metrics(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    X, Y, Z = (rng.normal(size=(n, rng.integers(1, 30))) for _ in range(3))
    for distance in (similarity.procrustes, similarity.angular_procrustes):
        assert distance(X, Z) <= distance(X, Y) + distance(Y, Z) + 1e-7


def test_one_feature_makes_everything_a_correlation() -> None:
    X, Y = related(50, 1, 1)
    r = abs(np.corrcoef(X[:, 0], Y[:, 0])[0, 1])
    for name in ("cca", "svcca", "pwcca"):
        assert PREPARED[name](X, Y) == pytest.approx(r)
    for name in ("cca-r2", "linear-regression"):
        assert PREPARED[name](X, Y) == pytest.approx(r**2)
    assert similarity.procrustes(X, Y) == pytest.approx(np.sqrt(2 - 2 * r))


def test_regression_says_how_much_of_x_the_columns_of_y_predict() -> None:
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(200, 6))
    X = Y[:, :2]
    assert similarity.linear_regression(X, Y) == pytest.approx(1)
    assert similarity.linear_regression(Y, X) == pytest.approx(1 / 3, abs=0.1)


def test_what_unrelated_representations_have() -> None:
    """The numbers of the documentation, as means over draws."""
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(50, 10)), rng.normal(size=(50, 20))) for _ in range(40)]

    def mean(name: str) -> float:
        return float(np.mean([PREPARED[name](X, Y) for X, Y in draws]))

    assert mean("cca-r2") == pytest.approx(20 / 49, abs=0.03)
    assert mean("linear-regression") == pytest.approx(20 / 49, abs=0.03)
    assert mean("mutual-knn") == pytest.approx(10 / 49, abs=0.03)
    assert mean("distance-correlation-debiased") == pytest.approx(0, abs=0.03)
    assert mean("distance-correlation") > 0.7


def test_debiased_distance_correlation_can_be_below_zero() -> None:
    rng = np.random.default_rng(1)
    found = [
        similarity.distance_correlation(
            rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), debiased=True
        )
        for _ in range(10)
    ]
    assert min(found) < 0 < max(found)


# What cannot be computed


@pytest.mark.parametrize("name", FULL_RANK)
@pytest.mark.parametrize("features", [29, 30, 200])
def test_features_that_fit_anything_are_refused(name: str, features: int) -> None:
    X, Y = related(30, 5, features)
    with pytest.raises(UserError, match=r"layer Y .*expected fewer features than the 30 samples"):
        PREPARED[name](X, Y)
    narrow, _ = related(30, 28, 5)
    assert np.isfinite(PREPARED[name](X, narrow))
    if name == "linear-regression":  # what is predicted may be wide
        assert 0 < PREPARED[name](Y, X) < 1


def test_svcca_is_refused_where_the_kept_components_fit_anything() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(20, 900)), rng.normal(size=(20, 900))
    with pytest.raises(UserError, match=r"fewer components than the 20 samples.*variance=0.9"):
        similarity.svcca(X, Y)
    assert 0 < similarity.svcca(X, Y, variance=0.5) < 1


@pytest.mark.parametrize("name", OF_LAYERS)
def test_constant_activations_are_nan(name: str) -> None:
    X, Y = related(30, 5, 5)
    assert np.isnan(PREPARED[name](X, np.full_like(Y, 0.1)))
    assert np.isnan(PREPARED[name](np.full_like(X, 1e4 / 3), Y))


@pytest.mark.parametrize("name", PREPARED)
def test_not_finite_is_named(name: str) -> None:
    X, Y = related(30, 5, 5)
    Y[17, 2] = np.nan
    with pytest.raises(UserError, match=r"Y\) expects finite activations; sample 17"):
        PREPARED[name](X, Y)


@pytest.mark.parametrize("name", PREPARED)
def test_the_least_number_of_samples(name: str) -> None:
    least = PREPARED[name].least()
    X, Y = related(least, 1 if name in (*FULL_RANK, "svcca") else 2, 2)
    Y = Y[:, : X.shape[1]]
    assert np.isfinite(PREPARED[name](X, Y))
    if least > 1:
        with pytest.raises(UserError, match=f"{name} expects at least {least} samples; got"):
            PREPARED[name](X[1:], Y[1:])
    with pytest.raises(UserError, match="same samples"):
        PREPARED[name](np.concatenate([X, X]), Y)


def test_settings_that_mean_nothing_are_refused() -> None:
    X, Y = related(30, 5, 5)
    for wrong in (
        lambda: similarity.svcca(X, Y, variance=0),
        lambda: similarity.svcca(X, Y, variance=1.01),
        lambda: similarity.mutual_knn(X, Y, k=0),
        lambda: similarity.mutual_knn(X, Y, k=29),
        lambda: similarity.jaccard(X, Y, metric="manhattan"),
        lambda: similarity.cknna(X, Y, k=0),
        lambda: similarity.rsa(X, Y, compare="kendall"),
        lambda: similarity.rsa(X, Y, metric="correlation"),
    ):
        with pytest.raises(UserError, match="expects"):
            wrong()


def test_predictions_need_the_same_classes() -> None:
    X, Y = related(30, 5, 6)
    with pytest.raises(UserError, match=r"disagreement expects logits.*has 5.* 6"):
        similarity.disagreement(X, Y)
    with pytest.raises(UserError, match="two or more classes"):
        similarity.jensen_shannon(X[:, :1], Y[:, :1])
    layer = [ArrayRepresentation(X, "layer4"), ArrayRepresentation(X, "layer5")]
    with pytest.raises(UserError, match=r"a layer named logits; got layer layer4"):
        PREPARED["disagreement"].pairs(layer, wanted=np.ones((2, 2), dtype=bool))


def test_jensen_shannon_of_certain_and_opposite_predictions() -> None:
    X = np.array([[1000.0, -1000], [0, 0]])
    Y = np.array([[-1000.0, 1000], [0, 0]])
    assert similarity.jensen_shannon(X, Y) == 0.5  # 1 bit for one of two samples
    assert similarity.jensen_shannon(X, X) == 0


# From Gram matrices alone


def of_gram(X: Array, layer: str) -> ArrayGram:
    one = ArrayRepresentation.from_array(X.astype(np.float32))
    return ArrayGram(centred_gram(one).numpy(), X.shape[1], layer)


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize("width", [9, 200])
def test_gram_matrices_are_enough_where_it_is_declared(name: str, width: int) -> None:
    X, Y = related(60, width, width)
    wanted = np.ones((2, 2), dtype=bool)
    grams = [of_gram(X, "X"), of_gram(Y, "Y")]
    if name not in OF_GRAMS:
        with pytest.raises(UserError, match=r"layer X .* no activations|fewer features"):
            PREPARED[name].pairs(grams, wanted=wanted, groups=1)
        return
    found = PREPARED[name].pairs(grams, wanted=wanted, groups=1).value
    # What float32 leaves of small singular values.
    assert found[0, 1] == pytest.approx(PREPARED[name](X, Y), abs=2e-5)


WANTED = np.array([[False, True], [False, False]])


def low_rank(n: int, rank: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(n, rank))
    X = shared @ rng.normal(size=(rank, 2000))
    return X, np.tanh(shared) @ rng.normal(size=(rank, 2000))


@pytest.mark.parametrize("rank", [2, 9])
def test_directions_of_float32_gram_matrices_end_where_rounding_begins(rank: int) -> None:
    both = low_rank(300, rank)
    grams = [of_gram(Z, side) for Z, side in zip(both, "XY", strict=True)]
    for one in (SVCCA(), SVCCA(1.0), PREPARED["procrustes"], PREPARED["angular-procrustes"]):
        exact = one(*both)
        found = one.pairs(grams, wanted=WANTED, groups=1)
        assert found.value[0, 1] == pytest.approx(exact, abs=2e-6)
        told = any("inner products are float32 and hold" in note for note in found.notes)
        assert told == (one == SVCCA(1.0))


def test_what_procrustes_loses_in_float32_gram_matrices_is_bounded_and_said() -> None:
    for decay, lost in ((0.5, False), (1.5, True)):
        X, Y = (Z * np.arange(1.0, 251) ** -decay for Z in related(300, 250, 250))
        grams = [of_gram(Z, "XY") for Z in (X, Y)]
        found = PREPARED["angular-procrustes"].pairs(grams, wanted=WANTED, groups=1)
        assert any("smallest directions" in note for note in found.notes) == lost
        exact = np.cos(similarity.angular_procrustes(X, Y))
        assert np.cos(found.value[0, 1]) == pytest.approx(exact, abs=1e-2 if lost else 1e-5)


NEAREST = [name for name in PREPARED if name.split(",")[0] in ("mutual-knn", "jaccard", "cknna")]


@pytest.mark.parametrize("name", NEAREST)
def test_cosines_on_a_line_tell_no_neighbours_apart(name: str) -> None:
    """They are 1 or -1 and their order is rounding: nan, whatever the offset, and said."""
    X, Y = low_rank(200, 1)
    for offset in (0, 1, 1e3):
        one = [ArrayRepresentation.from_array(Z[:, :1] + offset) for Z in (X, Y)]
        for both in (one, [of_gram(X + offset, "X"), of_gram(Y, "Y")]):
            found = PREPARED[name].pairs(both, wanted=WANTED, groups=1)
            assert np.isnan(found.value[0, 1])
            assert any("mutual-knn,metric=euclidean" in note for note in found.notes)
    assert similarity.mutual_knn(X[:, :1], Y[:, :1], metric="euclidean") > 0.5
    assert np.isfinite(PREPARED[name](np.tanh(X[:, :2]), np.tanh(Y[:, :2])))


def test_samples_on_one_ray_are_ties_and_it_is_said() -> None:
    """Cosines that differ in their last digit are equal: the first in order is the neighbour."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(10, 6))
    ray = np.repeat(direction, 6, axis=0)
    X = np.concatenate([ray, -ray]) * rng.uniform(0.5, 2, (120, 1))
    X[60:] = -X[:60]  # so that the mean is 0
    for one in (ArrayRepresentation.from_array(X), of_gram(X, "X")):
        found = PREPARED["mutual-knn"].pairs([one, one], wanted=WANTED, groups=1)
        assert any("as near as the next one" in note for note in found.notes)
    near = [set(row) for row in nearest(np.round(cosine(X), 9), 3)]
    same = [{*range(i // 6 * 6, i // 6 * 6 + 6)} - {i} for i in range(120)]
    assert all(a <= b for a, b in zip(near, same, strict=True))
    kernel = exact_gram(ArrayRepresentation.from_array(X), torch.device("cpu"))
    found = MutualKNN(3).of_gram(kernel, False)
    assert isinstance(found, Neighbours)
    assert [set(row) for row in found.nearest.tolist()] == near


def test_cknna_is_the_authors_but_for_the_centre() -> None:
    """With activations whose mean is 0 and one order of the pair, as their program has it."""
    X, Y = related(60, 9, 12)
    X, Y = (np.concatenate([Z - Z.mean(0), Z.mean(0) - Z]) for Z in (X, Y))
    n, k = len(X), 10

    def theirs(A: Array, B: Array) -> float:
        kernels = [torch.nn.functional.normalize(torch.from_numpy(Z), dim=1) for Z in (A, B)]
        K, L = (Z @ Z.T for Z in kernels)
        mask = torch.ones(n, n, dtype=torch.float64)
        for matrix in (K, L):
            near = matrix.clone().fill_diagonal_(-torch.inf).topk(k, dim=1).indices
            mask *= torch.zeros_like(mask).scatter(1, near, 1.0)
        K, L = mask * K, mask * L
        total = K.sum() * L.sum() / ((n - 1) * (n - 2))
        return float((K * L.T).sum() + total - 2 * (K @ L).sum() / (n - 2))

    own = np.sqrt(theirs(X, X) * theirs(Y, Y))
    expected = (theirs(X, Y) + theirs(Y, X)) / 2 / own
    assert similarity.cknna(X, Y, k=k) == pytest.approx(expected, abs=1e-9)
    assert similarity.cknna(X, X, k=k) == pytest.approx(1)


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize("scale", [1e-150, 1e-25, 1e25, 1e150])
def test_activations_of_any_size_can_be_compared(name: str, scale: float) -> None:
    X, Y = related(60, 9, 9)
    assert PREPARED[name](X * scale, Y) == pytest.approx(PREPARED[name](X, Y), abs=1e-8)


def test_cka_takes_its_settings() -> None:
    X, Y = related(60, 9, 9)
    both = [ArrayRepresentation(X, "X"), ArrayRepresentation(Y, "Y")]
    wanted = np.ones((2, 2), dtype=bool)
    found = CKA(estimator="biased", kernel="rbf:0.8").pairs(both, wanted=wanted)
    assert found.value[0, 1] == similarity.cka(X, Y, estimator="biased", kernel="rbf:0.8")
    assert found.attributes["estimator"] == "biased"
    found = CKA(estimator="minibatch", batch_size=20).pairs(both, wanted=wanted)
    assert found.attributes["batches"] == 3
