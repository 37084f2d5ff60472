"""Inversion, STIR and inverted-image CKA where the answer is known, and what must hold anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_reference import cka as reference_cka
from torch import Tensor, nn

from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.hooks import capture
from repsim.inversion import (
    SharedInvariances,
    invert,
    inverted_cka,
    noise_at_distance,
    relative_distance,
    shared_invariances,
    starting_images,
    stir,
)
from repsim.inversion.figure import inversion_figure, short
from repsim.inversion.result import summary, to_dataset
from repsim.result import load_result, save_result, to_csv
from repsim.similarity.tiles import assign_groups

SHAPE = (1, 3, 4)  # 12 pixels
SIZE = 12


class Linear(nn.Module):
    """g(x) = A·x; in float64, so that what is left is the inversion's own error."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
        self.layer.weight.data = matrix.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def rotation(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q


def pixels(n: int, seed: int = 0, spread: float = 0.1) -> Tensor:
    """Images about grey, far enough from 0 and 1 that clipping never acts."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *SHAPE, dtype=torch.float64, generator=generator)
    return (0.5 + spread * noise).clamp(0.05, 0.95)


IDENTITY = torch.eye(SIZE, dtype=torch.float64)
SEEN = rotation(SIZE, 3)[:4]  # a network that sees 4 directions of 12
PRECISE = {"layer": "logits", "steps": 600, "step_size": 0.5}
MANY = {"layers": "logits", "steps": 300, "step_size": 0.5}


# Where the answer is known


def test_an_invertible_network_gives_the_image_back() -> None:
    x = pixels(20)
    matrix = rotation(SIZE, 1) @ torch.diag(torch.linspace(1, 2, SIZE).double()) @ rotation(SIZE, 2)
    record: dict[str, Tensor] = {}
    found = invert(Linear(matrix), x, start=pixels(20, 9), record=record, **PRECISE)
    assert (found - x).abs().max() < 1e-3
    assert record["distance"].max() < 1e-3
    assert record["start_distance"].min() > 0.1


def test_what_a_network_ignores_stays_as_it_was_at_the_start() -> None:
    x, start = pixels(20), pixels(20, 9)
    found = invert(Linear(SEEN), x, start=start, **PRECISE)
    seen = SEEN.T @ SEEN  # projection onto the row space
    change, moved = ((a - b).flatten(1) for a, b in ((found, x), (found, start)))
    assert (change @ seen).abs().max() < 1e-3  # the original where it looks
    assert (moved @ (IDENTITY - seen)).abs().max() < 1e-12  # the start where it does not
    assert change.norm(dim=1).min() > 0.1


def test_at_the_optimum_nothing_moves() -> None:
    x = pixels(5)
    target = Linear(SEEN)(x).detach()
    record: dict[str, Tensor] = {}
    found = invert(Linear(SEEN), x, "logits", start=x, steps=20, record=record)
    assert torch.equal(found, x)
    assert (record["distance"] == 0).all()
    begin = x.clone().requires_grad_(True)
    distance = relative_distance(Linear(SEEN)(begin), target)
    (gradient,) = torch.autograd.grad(distance.sum(), begin)
    assert (gradient == 0).all()


def test_the_gradient_points_home_with_length_one_over_the_target() -> None:
    # d = ‖x' − x‖/‖x‖ for the identity: its gradient is the unit vector away from x over ‖x‖.
    x, begin = pixels(6), pixels(6, 4).requires_grad_(True)
    distance = relative_distance(begin.flatten(1), x.flatten(1))
    (gradient,) = torch.autograd.grad(distance.sum(), begin)
    away = (begin - x).detach().flatten(1)
    wanted = away / away.norm(dim=1, keepdim=True) / x.flatten(1).norm(dim=1, keepdim=True)
    assert torch.allclose(gradient.flatten(1), wanted)


def test_the_first_steps_by_hand() -> None:
    """v ← .9·v + .1·unit gradient, x' ← x' − s·(1 − k/steps)·v, best kept."""
    x, begin = pixels(3), pixels(3, 5)
    found = invert(Linear(IDENTITY), x, "logits", start=begin, steps=4, step_size=0.3)
    z, velocity = begin.flatten(1).numpy(), np.zeros((3, SIZE))
    target = x.flatten(1).numpy()
    tried = [z]
    for k in range(4):
        away = z - target
        velocity = 0.9 * velocity + 0.1 * away / np.linalg.norm(away, axis=1, keepdims=True)
        z = z - 0.3 * (1 - k / 4) * velocity
        tried.append(z)
    distances = [np.linalg.norm(z - target, axis=1) for z in tried]
    best = np.argmin(distances, axis=0)
    wanted = np.array([tried[k][i] for i, k in enumerate(best)])
    assert np.allclose(found.flatten(1).numpy(), wanted, atol=1e-12)


@pytest.fixture(scope="module")
def full_and_ignoring() -> tuple[SharedInvariances, Tensor]:
    """Network full sees everything, network part 4 directions of 12."""
    x = pixels(300)
    networks = {"full": Linear(IDENTITY), "part": Linear(SEEN)}
    return shared_invariances(networks, x, start="image", repetitions=2, **MANY), x


def test_stir_of_a_network_that_ignores_directions(
    full_and_ignoring: tuple[SharedInvariances, Tensor],
) -> None:
    found, x = full_and_ignoring
    seen = (SEEN.T @ SEEN).numpy()
    flat, values, whole = x.flatten(1).numpy(), found.stir.value, []
    for repetition in range(2):
        start = starting_images(x, "image", repetition=repetition).flatten(1).numpy()
        # Inverted from part: its own where it looks, another image's elsewhere.
        whole.append(reference_cka(flat, flat @ seen + start @ (np.eye(SIZE) - seen)))
    assert found.stir.repetitions[:, 0, 1] == pytest.approx(whole, abs=2e-3)
    assert values[0, 1] == pytest.approx(np.mean(whole), abs=2e-3)
    # Independent pixels of one variance: CKA(X, X') = k/d.
    assert values[0, 1] == pytest.approx(4 / SIZE, abs=0.06)
    assert found.stir.lower is not None
    assert found.stir.upper is not None
    assert found.stir.lower[0, 1] < 4 / SIZE < found.stir.upper[0, 1]
    # All that full tells apart, part does too, or sees as alike.
    assert values[[0, 1, 1], [0, 0, 1]] == pytest.approx([1, 1, 1], abs=1e-3)


def test_inverted_cka_of_a_network_that_ignores_directions(
    full_and_ignoring: tuple[SharedInvariances, Tensor],
) -> None:
    found, x = full_and_ignoring
    seen, flat, wanted = (SEEN.T @ SEEN).numpy(), x.flatten(1).numpy(), []
    for repetition in range(2):
        start = starting_images(x, "image", repetition=repetition).flatten(1).numpy()
        inverted = flat @ seen + start @ (np.eye(SIZE) - seen)
        wanted.append(reference_cka(inverted, inverted @ SEEN.numpy().T))
    assert found.inverted_cka.value[0, 1] == pytest.approx(np.mean(wanted), abs=2e-3)
    plain = reference_cka(flat, flat @ SEEN.numpy().T)
    assert found.cka.value[0, 1] == pytest.approx(plain, abs=1e-5)
    assert found.cka.value == pytest.approx(found.cka.value.T)
    # Images inverted from full are the originals.
    assert found.inverted_cka.value[1, 0] == pytest.approx(plain, abs=2e-3)
    assert np.diagonal(found.inverted_cka.value) == pytest.approx([1, 1])


def test_the_controls(full_and_ignoring: tuple[SharedInvariances, Tensor]) -> None:
    found, x = full_and_ignoring
    assert found.noise.value == pytest.approx(np.ones((2, 2)), abs=1e-3)
    start = starting_images(x, "image").flatten(1).numpy()
    assert found.start.repetitions[0, 0] == pytest.approx(
        [reference_cka(x.flatten(1).numpy(), start)] * 2, abs=1e-5
    )
    assert abs(found.start.value).max() < 0.1  # another image has nothing to do with this one
    assert found.distance.max() < 1e-2
    assert found.distance.shape == (2, 2, 300)
    assert found.pixels[0].max() < 1e-3
    assert found.pixels[1].min() > 0.01


def test_pairs_are_in_the_order_of_their_names() -> None:
    x, full, part = pixels(100), Linear(IDENTITY), Linear(SEEN)
    options = {**MANY, "start": "image"}
    part_given_full, full_given_part = stir(full, part, x, **options)
    assert part_given_full.value == pytest.approx(1, abs=1e-3)
    assert full_given_part.value < 0.6
    from_full, from_part = inverted_cka(full, part, x, **options)
    flat, seen = x.flatten(1).numpy(), SEEN.numpy()
    plain = reference_cka(flat, flat @ seen.T)
    start = starting_images(x, "image").flatten(1).numpy()
    inverted = flat @ seen.T @ seen + start @ (np.eye(SIZE) - seen.T @ seen)
    assert from_full.value == pytest.approx(plain, abs=2e-3)
    assert from_part.value == pytest.approx(reference_cka(inverted, inverted @ seen.T), abs=2e-3)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_identical_networks_and_rotations_of_one_have_stir_1(estimator: str) -> None:
    x = pixels(60)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 9), nn.Tanh(), nn.Linear(9, 6)).double()
    turned = nn.Sequential(*net, Linear(5 * rotation(6, 8)))
    for other in (net, turned):
        both = stir(net, other, x, estimator=estimator, **MANY)
        assert [one.value for one in both] == pytest.approx([1, 1], abs=2e-4)
        assert both[0].interval is not None
        low, high = both[0].interval
        assert high - low < 1e-3
        assert both[0].spread is None
    # They invert to the same images too: a rotation and a scale of g leave d as it is.
    one, same = (invert(n, x, "logits", start=pixels(60, 9), steps=50) for n in (net, turned))
    assert torch.allclose(one, same, atol=1e-6)
    assert [v.value for v in inverted_cka(net, turned, x, **MANY)] == pytest.approx([1, 1])


# What must hold anywhere


def small(seed: int = 0, channels: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


def photos(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 10**6), steps=st.integers(1, 12),
    layer=st.sampled_from(["penultimate", "logits", "3"]),
    start=st.sampled_from(["noise", "image", "grey"]), step_size=st.floats(1e-3, 3),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_properties(seed: int, steps: int, layer: str, start: str, step_size: float) -> None:
    net, x = small(seed % 5), photos(7, seed)
    record: dict[str, Tensor] = {}
    options = {"start": start, "steps": steps, "step_size": step_size, "seed": seed}
    found = invert(net, x, layer, ids=torch.arange(7) + 100, record=record, **options)
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert (record["distance"] <= record["start_distance"] * (1 + 1e-6)).all()
    # A batch of other images around it changes nothing, nor does the order.
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    again = invert(net, x[order], layer, ids=order + 100, batch_size=3, **options)
    assert torch.allclose(again, found[order], atol=1e-4)


def test_the_record_is_what_the_network_itself_says() -> None:
    net, x = small().eval(), photos(9)
    record: dict[str, Tensor] = {}
    found = invert(net, x, start="grey", steps=30, record=record)
    with capture(net, ["5"]) as layers, torch.no_grad():
        net(x)
        target = layers["5"].flatten(1).clone()
        net(found)
        reached = layers["5"].flatten(1).clone()
    wanted = (reached - target).norm(dim=1) / target.norm(dim=1)
    assert torch.allclose(record["distance"], wanted, rtol=1e-3)


def test_steps_in_autocast_are_judged_in_full_precision() -> None:
    net, x = small().eval(), photos(9)
    record: dict[str, Tensor] = {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = invert(net, x, "logits", start="grey", steps=30, record=record)
    with torch.no_grad():
        wanted = relative_distance(net(found), net(x))
    assert torch.allclose(record["distance"], wanted, rtol=1e-4)


def test_the_network_is_left_as_it_was() -> None:
    net = small().train()
    net[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    shared_invariances({"net": net}, photos(6), steps=3, classifiers=["net"])
    assert all(part.training for part in net.modules())
    assert [p.requires_grad for p in net.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_draws_are_keyed_and_differ_by_seed_and_repetition() -> None:
    x, ids = photos(40), torch.arange(40) * 7
    labels = torch.arange(40) % 3
    for kind in ("noise", "image", "grey"):
        torch.manual_seed(1)
        first = starting_images(x, kind, labels=labels, ids=ids, seed=5)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert torch.equal(first, starting_images(x, kind, labels=labels, ids=ids, seed=5))
        assert torch.equal(state, torch.get_rng_state())
        for other in ({"seed": 6}, {"seed": 5, "repetition": 1}):
            drawn = starting_images(x, kind, labels=labels, ids=ids, **other)
            assert not torch.equal(first, drawn)
    noise = starting_images(x, "noise", ids=ids)
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.std() == pytest.approx(12**-0.5, abs=0.02)
    grey = starting_images(x, "grey", ids=ids)
    assert 0.45 <= grey.min() < 0.46
    assert 0.54 < grey.max() <= 0.55


def test_other_images_are_of_another_class_each_as_likely() -> None:
    x, labels = photos(30), torch.arange(30) % 3
    drawn = torch.zeros(30, 30)
    for seed in range(200):
        begin = starting_images(x, "image", labels=labels, seed=seed)
        chosen = (begin[:, None] == x[None]).flatten(2).all(2)
        assert (chosen.sum(1) == 1).all()
        drawn += chosen
    assert (drawn[labels[:, None] == labels] == 0).all()
    often = drawn[labels[:, None] != labels] / 200
    assert often.min() > 0
    assert often.max() < 0.15  # of 20 images, 1/20 each
    # Without labels any but the image itself.
    begin = starting_images(x, "image")
    assert not (begin == x).flatten(1).all(1).any()


def test_noise_is_noticed_as_much_as_asked() -> None:
    net, x = Linear(SEEN), pixels(12)
    wanted = torch.linspace(0.002, 0.2, 12).double()
    noisy, reached = noise_at_distance(net, x, wanted, "logits", batch_size=5)
    assert torch.allclose(reached, wanted, rtol=0.01)
    with torch.no_grad():
        assert torch.allclose(relative_distance(net(noisy), net(x)), reached)
    # It has all directions, of which the network sees 4 of 12.
    change = (noisy - x).flatten(1)
    share = ((change @ SEEN.T) ** 2).sum() / (change**2).sum()
    assert share == pytest.approx(4 / SIZE, abs=0.15)
    again, _ = noise_at_distance(net, x[5:], wanted[5:], "logits", ids=torch.arange(5, 12))
    assert torch.allclose(again, noisy[5:], atol=1e-6)
    _, far = noise_at_distance(net, x, torch.full((12,), 1e6), "logits")
    assert (far < 1e6).all()


def test_intervals_leave_groups_of_images_out() -> None:
    x = pixels(43)
    networks = {"a": Linear(SEEN), "b": Linear(rotation(SIZE, 5)[:6])}
    found = shared_invariances(networks, x, repetitions=2, groups=5, steps=20, layers="logits")
    group_of, replicates, values = assign_groups(43, 5), [], []
    for repetition in range(2):
        begin = starting_images(x, "noise", repetition=repetition)
        again = invert(networks["a"], x, "logits", start=begin, steps=20)
        with torch.no_grad():
            X, Y = (networks["b"](z).numpy() for z in (x, again))
        values.append(reference_cka(X, Y))
        replicates.append(
            [reference_cka(X[group_of != g], Y[group_of != g]) for g in range(5)]
        )  # fmt: skip
    assert found.stir.repetitions[:, 1, 0] == pytest.approx(values, abs=1e-5)
    assert found.stir.value[1, 0] == pytest.approx(np.mean(values), abs=1e-5)
    spread = found.stir.spread
    assert spread is not None
    assert spread[1, 0] == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    # Busing et al.'s delete-a-group jackknife, of the mean over repetitions.
    theta, without = np.mean(values), np.mean(replicates, axis=0)
    h = 43 / np.bincount(group_of)
    pseudo = h * theta - (h - 1) * without
    centre = 5 * theta - ((1 - 1 / h) * without).sum()
    error = np.sqrt(((pseudo - centre) ** 2 / (h - 1)).mean())
    assert found.stir.lower is not None
    assert found.stir.lower[1, 0] == pytest.approx(theta - 2.7764451 * error, abs=1e-4)
    assert found.groups == 5


# Real networks and files


@pytest.fixture(scope="module")
def few(digits_test: ImageData) -> ImageData:
    return draw(digits_test, 40)


@pytest.fixture
def pair(checkpoints: dict[str, Path]) -> list[LoadedModel]:
    return [load_model(checkpoints["st"]), load_model(checkpoints["at"])]


def test_a_trained_network_is_inverted(loaded: LoadedModel, few: ImageData) -> None:
    x = to_float(few.images)
    for layer, close in (("penultimate", 0.2), ("logits", 0.2), ("layer2.0.relu2", 0.4)):
        record: dict[str, Tensor] = {}
        found = invert(loaded.model, x, layer, steps=60, ids=few.keys, record=record)
        assert record["distance"].median() < close < record["start_distance"].median()
        if layer != "layer2.0.relu2":
            with torch.no_grad():
                same = loaded.model(found).argmax(1) == loaded.model(x).argmax(1)
            assert same.float().mean() > 0.9


def test_two_trained_networks_and_their_result_file(
    pair: list[LoadedModel], few: ImageData, tmp_path: Path
) -> None:
    x, labels = to_float(few.images), few.labels.numpy()
    found = shared_invariances(
        {one.name: one.model for one in pair}, x, steps=40, repetitions=2, ids=few.keys,
        start="image", labels=few.labels, classifiers=["st", "at"],
    )  # fmt: skip
    begin = starting_images(x, "image", labels=few.labels, ids=few.keys)
    again = invert(pair[0].model, x, start=begin, steps=40)
    assert torch.equal(found.begun, begin)
    assert torch.allclose(found.inverted[0], again, atol=1e-4)
    with torch.no_grad():
        clean, shown = (pair[1].model(z).argmax(1).numpy() for z in (x, found.inverted[0]))
    assert np.array_equal(found.clean_predictions["at"], clean)
    assert np.array_equal(found.predictions["at"][0, 0], shown)
    kept = (found.predictions["at"][0] == clean).mean()
    assert found.kept[1, 0] == pytest.approx(kept)
    assert found.kept[0, 0] > 0.9
    assert (np.diagonal(found.stir.value) > 0.9).all()
    assert found.stir.value[1, 0] < 0.9

    path = tmp_path / "stir.h5"
    save_result(to_dataset(found, labels, {"settings": {"steps": 40}}), path)
    result = load_result(path)
    assert np.array_equal(result["similarity"].values, found.stir.value)
    assert np.array_equal(result["inverted_cka"].values, found.inverted_cka.value)
    assert (result["lower"] <= result["similarity"]).all()
    assert result["distance"].shape == (2, 2, 40)
    assert list(result["y_model"].values) == ["st", "at"]
    assert set(result["y_condition"].values) == {"inverted"}
    assert json.loads(result.attrs["provenance"])["settings"] == {"steps": 40}
    numbers = json.loads(result.attrs["summary"])
    assert numbers == summary(found, labels)
    assert numbers["stir"][1][0] == found.stir.value[1, 0]
    low, high = numbers["stir_ci"][1][0]
    assert low < numbers["stir"][1][0] < high
    right = (found.clean_predictions["st"] == labels).mean()
    assert numbers["accuracy"]["st"]["clean_accuracy"] == pytest.approx(right)
    inverted = (found.predictions["st"][1] == labels).mean()
    assert numbers["accuracy"]["st"]["inverted_accuracy"][1] == pytest.approx(inverted)
    to_csv(result, tmp_path / "stir.csv")
    assert (tmp_path / "stir.csv").read_text().count("\n") == 5

    fig = inversion_figure(found, x, columns=6)
    texts = [ax.get_ylabel() for ax in fig.axes if ax.get_ylabel()]
    assert texts == ["original", "start", "inverted\nst", "inverted\nat"]
    assert len(fig.axes) == 4 * 6 + 3
    written = [text.get_text() for text in fig.axes[-3].texts]
    assert written == [f"{value:.2f}" for value in found.stir.value.flat]


def test_short_names() -> None:
    assert short(["cifar10-st", "cifar10-at"]) == ["st", "at"]
    assert short(["net", "net2"]) == ["net", "net2"]
    assert short(["alone-here"]) == ["alone-here"]
    assert short(["a/x-1", "a/x-2", "a/y"]) == ["x-1", "x-2", "y"]


def test_networks_that_do_not_classify_have_no_predictions() -> None:
    x = photos(12)
    found = shared_invariances({"a": small(), "b": small(1)}, x, steps=2, classifiers=["b"])
    assert np.isnan(found.kept[0]).all()
    assert not np.isnan(found.kept[1]).any()
    numbers = summary(found, np.zeros(12, dtype=np.int64))
    assert numbers["kept"][0] == [None, None]
    assert set(numbers["accuracy"]) == {"b"}
    json.dumps(numbers, allow_nan=False)
    one = shared_invariances({"a": small()}, x, steps=2, groups=1)
    assert one.stir.lower is None
    assert "stir_ci" not in summary(one, np.zeros(12, dtype=np.int64))


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1; got 0 and 128"),
        ({"batch_size": 0}, "at least 1; got 300 and 0"),
        ({"step_size": -1.0}, "step_size expects a number above 0"),
        ({"step_size": float("nan")}, "step_size expects a number above 0"),
        ({"start": "somewhere"}, "start expects one of noise, image, grey, or images"),
        ({"start": torch.zeros(2, 1, 8, 8)}, r"shape \(6, 1, 8, 8\); got \(2, 1, 8, 8\)"),
        ({"start": torch.full((6, 1, 8, 8), 2.0)}, r"pixels in \[0, 1\]"),
        ({"start": "image", "labels": torch.zeros(6, dtype=torch.int64)}, "two classes"),
        ({"layer": "nowhere"}, "no layer 'nowhere'"),
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        invert(small(), photos(6), **options)


def test_representations_without_a_relative_distance() -> None:
    black = photos(6).double()
    black[:3] = 0
    with pytest.raises(UserError, match="3 of 6 images have 0; choose another layer"):
        invert(Linear(torch.eye(64)), black, "logits")
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    broken[1].weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN or inf"):
        invert(broken, photos(6), "logits")

    class Steep(nn.Module):  # finite at the images, but not everywhere
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) - 0.9).sqrt()

    with pytest.raises(UserError, match="finite representation and gradient"):
        invert(Steep(), torch.full((2, 1, 8, 8), 0.95), "logits", start="grey", steps=2)
    with pytest.raises(UserError, match="layer logits expects a network that returns"):
        invert(nn.Flatten(0), photos(6), "logits")
    with pytest.raises(UserError, match=r"pixels in \[0, 1\]"):
        invert(small(), photos(6) * 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetitions": 0}, "repetitions expects at least 1"),
        ({"estimator": "minibatch"}, "one of debiased, biased; got 'minibatch'"),
        ({"layers": ["logits", "penultimate"]}, "1 networks and 2 layers"),
    ],
)
def test_comparisons_that_cannot_be_meant(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shared_invariances({"a": small()}, photos(6), **options)
    with pytest.raises(UserError, match="0 networks"):
        shared_invariances({}, photos(6))
    with pytest.raises(UserError, match="at least 4 samples; got 3"):
        stir(small(), small(1), photos(3), steps=1)
    with pytest.raises(UserError, match=r"to return logits .*got \(6, 6, 8, 8\)"):
        shared_invariances({"a": small()[:3]}, photos(6), layers="2", steps=1, classifiers=["a"])
