"""Solvers of probes against scikit-learn, closed forms, and what must hold for any features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_source import MadeUp, blobs
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from repsim.errors import UserError
from repsim.probe.classifiers import Linear, Neighbours, inverse_deviation
from repsim.probe.descent import epoch_rows
from repsim.probe.fit import Probes, fit_probes, predict
from repsim.probe.held import fit_logistic, minimise, standardise
from repsim.probe.lbfgs import lbfgs
from repsim.probe.moments import Moments, Origin
from repsim.probe.running import Running
from repsim.probe.settings import (
    SOLVERS,
    Settings,
    Training,
    at_the_edge,
    trainings,
    validation_rows,
)
from repsim.probe.sizes import grouped
from repsim.progress import Silent

CLEAN = [Training("clean", ("clean",))]


def fitted(
    source: MadeUp, classes: int, training: list[Training] = CLEAN, **options: object
) -> Probes:
    options = {"epochs": 20, "batch_size": 64, **options}
    return fit_probes(source, training, classes, Settings(**options).checked(), Silent(), [])  # type: ignore[arg-type]


def accuracy(probes: Probes, source: MadeUp, condition: str = "clean") -> dict[str, float]:
    found = predict(source, probes, condition, 64, Silent())
    return {key[0]: float((p == source.labels.numpy()).mean()) for key, p in found.items()}


def one_layer(x: Tensor, y: Tensor) -> MadeUp:
    return MadeUp({("clean", "layer"): x}, y)


@pytest.mark.parametrize("features", [5, 300], ids=["more images", "more features"])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 3.0])
def test_ridge_is_scikit_learns(features: int, strength: float) -> None:
    x, y = blobs(200, features, spread=3)
    x[:, 0] = x[:, 0] * 1e3 + 1e4
    source = one_layer(x, y)
    probe = fitted(source, 4, solver="ridge", strengths=(strength,))["layer", "clean"]
    assert isinstance(probe, Linear)
    z = StandardScaler().fit_transform(x.double().numpy())
    reference = Ridge(alpha=len(x) * strength).fit(z, F.one_hot(y, 4).double().numpy())
    wanted = torch.from_numpy(z @ reference.coef_.T + reference.intercept_)
    found = probe.scores(x).double()
    sharpness = (found * wanted).sum() / (wanted * wanted).sum()  # one factor for all scores
    assert found / sharpness == pytest.approx(wanted, abs=2e-4)
    assert np.log2(float(sharpness)) * 2 == pytest.approx(
        round(np.log2(float(sharpness)) * 2), abs=1e-2
    )


def test_ridge_of_batches_is_ridge_of_all() -> None:
    x, y = blobs(300, 40, spread=3)
    probes = [
        fitted(one_layer(x, y), 4, solver="ridge", batch_size=size)["layer", "clean"]
        for size in (7, 64, 300)
    ]
    for other in probes[1:]:
        assert other.strength == probes[0].strength
        assert other.scores(x) == pytest.approx(probes[0].scores(x), abs=1e-3)


def test_moments_add_up() -> None:
    x, y = blobs(100, 6)
    origin = Origin.of(x[:10])
    parts = Moments(origin, 4), Moments(origin, 4), Moments(origin, 4)
    for moments, rows in zip(parts, (slice(0, 30), slice(30, 100), slice(0, 100)), strict=True):
        moments.add(x[rows], y[rows])
    total, whole = (parts[0] + parts[1]).standardised(), parts[2].standardised()
    assert total.correlation == pytest.approx(whole.correlation, abs=1e-6)
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    assert whole.correlation == pytest.approx(z.T @ z / 100, abs=1e-5)
    assert whole.mean == pytest.approx(x.double().mean(0), abs=1e-5)
    assert whole.scale == pytest.approx(1 / x.double().std(0, correction=0), rel=1e-5)
    centred = F.one_hot(y, 4).double() - 0.25
    assert whole.cross == pytest.approx(z.T @ centred / 100, abs=1e-5)


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_logistic_is_scikit_learns(strength: float) -> None:
    x, y = blobs(400, 12, spread=2.5)
    z, mean, _ = standardise(x)
    reference = StandardScaler().fit_transform(x.double().numpy())
    assert z.double().numpy() == pytest.approx(reference, abs=1e-4)
    assert mean.double().numpy() == pytest.approx(x.double().mean(0).numpy(), abs=1e-5)
    weight, bias = minimise(z, y, 4, strength)
    model = LogisticRegression(C=1 / (400 * strength), tol=1e-10, max_iter=5000).fit(reference, y)
    assert weight.numpy() == pytest.approx(model.coef_, abs=2e-3)
    # An offset of all classes' biases changes nothing.
    shift = bias.numpy() - model.intercept_
    assert shift - shift.mean() == pytest.approx(np.zeros(4), abs=2e-3)


def test_neighbours_are_scikit_learns() -> None:
    x, y = blobs(300, 8, spread=3)
    other, _ = blobs(200, 8, spread=3, seed=1)
    for k in (1, 5, 10):
        probe = fitted(one_layer(x, y), 4, solver="knn", strengths=(k,))["layer", "clean"]
        assert isinstance(probe, Neighbours)
        scale = StandardScaler().fit(x.numpy())
        reference = KNeighborsClassifier(k).fit(scale.transform(x.numpy()), y)
        wanted = reference.predict(scale.transform(other.numpy()))
        assert (probe.scores(other).argmax(1).numpy() == wanted).mean() > 0.99


@pytest.mark.parametrize("solver", SOLVERS)
def test_features_that_encode_the_label_give_1(solver: str) -> None:
    y = torch.arange(400) % 5
    x = F.one_hot(y, 5).float() + 0.05 * torch.randn(
        400, 5, generator=torch.Generator().manual_seed(0)
    )
    source = one_layer(x, y)
    assert accuracy(fitted(source, 5, solver=solver), source) == {"layer": 1.0}


@pytest.mark.parametrize("solver", SOLVERS)
def test_random_features_give_chance(solver: str) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (1600,), generator=generator)
    x = torch.randn(1600, 10, generator=generator)
    train, test = one_layer(x[:800], labels[:800]), one_layer(x[800:], labels[800:])
    found = accuracy(fitted(train, 4, solver=solver), test)["layer"]
    assert abs(found - 0.25) < 4 * (0.25 * 0.75 / 800) ** 0.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_layers_of_very_different_scale_all_train(solver: str) -> None:
    x, y = blobs(600, 20, spread=2)
    other, labels = blobs(400, 20, spread=2, seed=1)
    # Each also with a column that never changes.
    scales = {"one": (1.0, 0.0), "tiny": (1e-6, 0.0), "huge": (1e6, 0.0), "offset": (1.0, 1e3)}

    def layers(values: Tensor) -> dict[tuple[str, str], Tensor]:
        return {
            ("clean", name): torch.cat([values * a + b, torch.full((len(values), 1), b)], 1)
            for name, (a, b) in scales.items()
        }

    found = accuracy(fitted(MadeUp(layers(x), y), 4, solver=solver), MadeUp(layers(other), labels))
    assert found["one"] > 0.8
    assert found == pytest.approx(dict.fromkeys(scales, found["one"]), abs=0.006)


@pytest.mark.parametrize("solver", SOLVERS)
def test_both_is_the_two_together(solver: str) -> None:
    x, y = blobs(300, 6, spread=0.6)
    moved = -x  # what is learnt from one is wrong for the other, but for what both have
    source = MadeUp({("clean", "layer"): x, ("pgd", "layer"): moved}, y,
                    kinds={"clean": "clean", "pgd": "attack"})  # fmt: skip
    asked = trainings(["clean", "pgd", "both:pgd"], source.kinds)
    probes = fitted(source, 4, asked, solver=solver)
    alone = fitted(one_layer(x, y), 4, solver=solver)["layer", "clean"]
    # A probe is the same whatever others are trained beside it.
    assert probes["layer", "clean"].scores(x) == pytest.approx(alone.scores(x), abs=2e-3)
    right = {
        (train, condition): float(
            (p.scores(source.values[condition, "layer"]).argmax(1) == y).float().mean()
        )
        for (_, train), p in probes.items()
        for condition in source.kinds
    }
    assert right["clean", "clean"] > 0.85
    assert right["pgd", "pgd"] > 0.85
    assert right["clean", "pgd"] < 0.4
    if solver == "ridge":
        joined = one_layer(torch.cat([x, moved]), torch.cat([y, y]))
        joined.keys = torch.cat([source.keys, source.keys])
        together = fitted(
            joined, 4, solver=solver, strengths=(probes["layer", "both:pgd"].strength,)
        )
        wanted = together["layer", "clean"].scores(x)
        found = probes["layer", "both:pgd"].scores(x)
        # Both share the centre, so that nothing linear is left.
        assert found / found.abs().max() == pytest.approx(wanted / wanted.abs().max(), abs=1e-3)


def test_ridge_needs_one_pass() -> None:
    x, y = blobs(300, 6)
    source = one_layer(x, y)
    fitted(source, 4, solver="ridge")
    assert sum(count for _, count in source.fed) == 300


@pytest.mark.parametrize("solver", ["ridge", "logistic", "knn"])
def test_layers_that_do_not_fit_the_memory_take_turns(solver: str) -> None:
    x, y = blobs(300, 30)
    layers = {("clean", f"layer{i}"): x * (i + 1) + i for i in range(4)}
    notes: list[str] = []
    small = Settings(solver=solver, memory=150_000).checked()
    few = fit_probes(MadeUp(layers, y), CLEAN, 4, small, Silent(), notes)
    assert "passes of 0 MiB" in notes[0]
    many = fitted(MadeUp(layers, y), 4, solver=solver, batch_size=256)
    assert list(few) == list(many)
    for key, probe in few.items():
        assert probe.scores(x) == pytest.approx(many[key].scores(x), abs=1e-5)
    with pytest.raises(UserError, match="--memory allows"):
        fitted(MadeUp(layers, y), 4, solver=solver, memory=1000)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_held_features_change_nothing(solver: str) -> None:
    x, y = blobs(300, 6, spread=2)
    runs = {}
    for hold in (True, False):
        source = one_layer(x, y)
        runs[hold] = fitted(source, 4, solver=solver, hold=hold, epochs=5)["layer", "clean"]
        fed = sum(count for _, count in source.fed)
        # Held: once. Else: training part in each epoch, validation part at the end.
        assert fed == (300 if hold else 5 * 268 + 32)
    assert runs[True].scores(x) == pytest.approx(runs[False].scores(x), abs=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_order_of_the_images_changes_nothing(solver: str) -> None:
    x, y = blobs(200, 6, spread=2)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    one = MadeUp({("clean", "layer"): x}, y)
    other = MadeUp({("clean", "layer"): x[order]}, y[order], keys=torch.arange(200)[order])
    a, b = (fitted(s, 4, solver=solver)["layer", "clean"] for s in (one, other))
    assert a.strength == b.strength
    assert a.scores(x) == pytest.approx(b.scores(x), abs=2e-3)


def test_the_strength_is_chosen_on_the_validation_part() -> None:
    """Many noisy features, few images: the smallest penalty overfits, the choice does not."""
    x, y = blobs(120, 100, classes=2, spread=6)
    other, labels = blobs(2000, 100, classes=2, spread=6, seed=1)
    test = one_layer(other, labels)
    chosen = fitted(one_layer(x, y), 2, solver="ridge", strengths=(1e-6, 1.0), validation=0.3)
    least = fitted(one_layer(x, y), 2, solver="ridge", strengths=(1e-6,))
    assert chosen["layer", "clean"].strength == 1.0
    assert accuracy(chosen, test)["layer"] > accuracy(least, test)["layer"] + 0.03


def test_every_strength_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right on the validation part, from the strongest: 100, 99, 120. The last is the best."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate((100, 99, 120))])
    says = {1e-1: 0, 1e-2: 1, 1e-3: 2}
    tried: list[float] = []

    def made_up(
        z: Tensor, y: Tensor, classes: int, strength: float, start: object = None
    ) -> tuple[Tensor, Tensor]:
        tried.append(strength)
        return torch.zeros(classes, z.shape[1]), F.one_hot(torch.tensor(says[strength]), 3).float()

    monkeypatch.setattr("repsim.probe.held.minimise", made_up)
    options = Settings(solver="logistic", strengths=tuple(says)).checked()
    x = torch.randn(2 * len(labels), 4, generator=torch.Generator().manual_seed(0))
    held_out = torch.arange(2 * len(labels)) < len(labels)
    probe = fit_logistic(x, labels.repeat(2), held_out, 3, options)
    assert tried == [1e-1, 1e-2, 1e-3, 1e-3]  # the best again, on all images
    assert probe.strength == 1e-3


def test_a_choice_at_the_edge_is_told() -> None:
    ridge = Settings().checked()
    assert ridge.strengths[-2:] == (100.0, 1000.0)
    assert at_the_edge([1.0, 10.0], ridge) == []
    said = at_the_edge([1e-4, 1.0, 1000.0, 1000.0], ridge)
    assert "1 of 4 probes chose the smallest of the strengths, 0.0001" in said[0]
    assert "2 of 4 probes chose the largest of the strengths, 1000" in said[1]
    assert at_the_edge([0.0], Settings(solver="adam").checked()) == []
    assert at_the_edge([1.0, 10.0], Settings(solver="knn").checked()) == []
    assert at_the_edge([0.5], Settings(strengths=(0.5,)).checked()) == []


def test_many_noisy_features_want_a_large_ridge_strength() -> None:
    """Beyond 10, at which the grid once ended; chosen and better."""
    x, y = blobs(400, 300, classes=2, spread=25)
    other, labels = blobs(4000, 300, classes=2, spread=25, seed=1)
    test = one_layer(other, labels)
    chosen = fitted(one_layer(x, y), 2, solver="ridge", validation=0.5)
    assert chosen["layer", "clean"].strength > 10
    before = fitted(one_layer(x, y), 2, solver="ridge", strengths=(1e-4, 1e-3, 1e-2))
    assert accuracy(chosen, test)["layer"] > accuracy(before, test)["layer"]


def test_features_that_are_not_finite_are_refused() -> None:
    x, y = blobs(100, 6)
    x[55, 2] = torch.inf
    for solver in SOLVERS:
        with pytest.raises(UserError, match=r"layer layer \(clean\) expects finite activations"):
            fitted(one_layer(x, y), 4, solver=solver)


@given(st.integers(2, 6), st.integers(1, 40), st.floats(0.01, 0.5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_validation_part(classes: int, each: int, fraction: float, seed: int) -> None:
    labels = torch.arange(classes * each) % classes
    keys = torch.randint(
        -(2**62), 2**62, (len(labels),), generator=torch.Generator().manual_seed(seed)
    )
    chosen = validation_rows(labels, keys, fraction, seed)
    for label in range(classes):
        count = int(chosen[labels == label].sum())
        assert count == min(max(1, round(fraction * each)), each - 1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    assert torch.equal(validation_rows(labels[order], keys[order], fraction, seed), chosen[order])


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(-1e4, 1e4), st.integers(0, 9)
)
@settings(max_examples=40, deadline=None)
def test_running_statistics(sizes: list[int], offset: float, seed: int) -> None:
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)) + offset
    running = Running(3, "cpu")
    for part in x.split(sizes):
        running.add(part)
    assert running.mean == pytest.approx(x.double().mean(0), rel=1e-6, abs=1e-5)
    variance = x.double().var(0, correction=0)
    assert running.squares / len(x) == pytest.approx(variance, rel=2e-3, abs=1e-6)


def test_an_epoch_sees_every_image_once_in_another_order() -> None:
    keys = torch.arange(50) * 7
    training = torch.arange(5, 50)
    orders = [torch.cat(epoch_rows(keys, training, 8, seed=0, epoch=e)) for e in range(3)]
    for order in orders:
        assert torch.equal(order.sort().values, training)
    assert not torch.equal(orders[0], orders[1])


def test_a_constant_feature_says_nothing() -> None:
    mean = torch.tensor([0.0, 1e4, 5.0], dtype=torch.float64)
    variance = torch.tensor([0.0, 1e-6, 4.0], dtype=torch.float64)
    assert inverse_deviation(mean, variance).tolist() == [0, 0, 0.5]


def test_groups_keep_the_order_and_fit() -> None:
    sizes = {"a": 5, "b": 5, "c": 3, "d": 8}
    assert grouped(list(sizes), sizes.__getitem__, 10) == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["clean"], [("clean", ("clean",))]),
        (["adv", "pgd"], [("pgd", ("pgd",))]),
        (["both", "noise"], [("both:pgd", ("clean", "pgd")), ("noise", ("noise",))]),
        (["both:noise"], [("both:noise", ("clean", "noise"))]),
    ],
)
def test_trainings(asked: list[str], found: list[tuple[str, tuple[str, ...]]]) -> None:
    kinds = {"clean": "clean", "noise": "control", "pgd": "attack"}
    assert trainings(asked, kinds) == [Training(*one) for one in found]


@pytest.mark.parametrize("asked", [["fgsm"], ["both:clean"], [""], []])
def test_trainings_that_cannot_be_meant(asked: list[str]) -> None:
    with pytest.raises(UserError, match="--train-on expects"):
        trainings(asked, {"clean": "clean", "pgd": "attack"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solver": "svm"}, "--solver expects one of ridge"),
        ({"strengths": (0.0,)}, "--strengths of ridge expects numbers above 0; got 0"),
        ({"solver": "knn", "strengths": (1.5,)}, "whole numbers of neighbours; got 1.5"),
        ({"validation": 0.0}, "--validation expects a fraction"),
        ({"solver": "adam", "lr": -1.0}, "--lr expects a number above 0"),
        ({"epochs": 0}, "--epochs expects at least 1"),
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Settings(**options).checked()  # type: ignore[arg-type]


def test_lbfgs_of_an_ill_conditioned_quadratic() -> None:
    """½ xᵀDx - x·1 has its minimum at 1/D; gradient descent would need thousands of steps."""
    curvature = torch.logspace(-1, 2, 30)
    asked = 0

    def function(x: Tensor) -> tuple[float, Tensor]:
        nonlocal asked
        asked += 1
        return float((curvature * x * x).sum() / 2 - x.sum()), curvature * x - 1

    found = lbfgs(function, torch.zeros(30))
    assert found == pytest.approx(1 / curvature, rel=2e-2)
    assert asked < 130
