"""Attacks: optima in closed form, the ball, the modes, the network left alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repsim.attacks import (
    ATTACKS,
    fgsm,
    frozen,
    mim,
    noise,
    noise_control,
    parse_attack,
    perturbation_norm,
    pgd,
    rfgsm,
    run_attack,
)
from repsim.attacks.ball import check_ball, project, random_start, steepest
from repsim.attacks.table import REPRESENTATION
from repsim.errors import UserError
from repsim.losses import dlr, kl, margin

CLASSES = 5
EPS = 8 / 255


class ConvNet(nn.Module):
    """Small, non-linear, without coupling inside a batch; untrained weights, scaled up."""

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES),
        )  # fmt: skip
        with torch.no_grad():
            self.layers[-1].weight.mul_(30)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Counter(nn.Module):
    """Counts the forwards and the images that go through a network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.images = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        self.images += len(x)
        return self.model(x)


def images(
    batch: int = 12, channels: int = 3, size: int = 8, *, low: float = 0.0, high: float = 1.0
) -> Tensor:
    noise = torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1))
    return low + (high - low) * noise


def labels(model: nn.Module, x: Tensor) -> Tensor:
    """The network's own predictions, so that every image is classified correctly."""
    with torch.no_grad():
        return model(x).argmax(1)


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


@pytest.fixture
def net() -> nn.Module:
    return ConvNet().eval()


# --- the optimum on a linear model -----------------------------------------------------------


def linear(classes: int = 2) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    head = nn.Linear(3 * 8 * 8, classes)
    return nn.Sequential(nn.Flatten(), head), head.weight.detach()


def closed_form(weight: Tensor, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
    """argmax over the ball of the two-class cross-entropy: along the other row minus one's own."""
    direction = (weight[1 - y] - weight[y]).view_as(x)
    if norm == "linf":
        return x + eps * direction.sign()
    return x + eps * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "pgd-clean", "pgd-last"])
def test_optimum_on_a_linear_model(norm: str, attack: str) -> None:
    model, weight = linear()
    x = images(low=0.2, high=0.8)  # the box does not bind
    y = torch.arange(len(x)) % 2
    eps = 0.05 if norm == "linf" else 0.5
    wanted = closed_form(weight, x, y, eps, norm)
    record: dict[str, Tensor] = {}
    if attack == "fgsm":
        found = fgsm(model, x, y, eps=eps, norm=norm, record=record)
    else:
        found = pgd(
            model, x, y, eps=eps, norm=norm, steps=60, step_size=eps / 2,
            start="clean" if attack == "pgd-clean" else "random",
            mode="last" if attack == "pgd-last" else "represent", record=record,
        )  # fmt: skip
    # Of the last l2 iterates, which differ by less, the loss no longer tells which is best.
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)
    torch.testing.assert_close(record["loss"], losses(model, wanted, y), atol=1e-5, rtol=1e-5)


def test_box_is_part_of_the_linf_optimum() -> None:
    """On a linear model the optimum over ball and box is the optimum over the ball, clipped."""
    model, weight = linear()
    x = images()
    x[0] = 0
    x[1] = 1
    y = torch.arange(len(x)) % 2
    wanted = closed_form(weight, x, y, 0.1, "linf").clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, eps=0.1), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(pgd(model, x, y, eps=0.1), wanted, atol=1e-6, rtol=0)


# --- the ball --------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, float, str, dict[str, object]]:
    """Images with pixels on and near the box, and the settings of an attack."""
    shape = [draw(st.integers(1, 4)), draw(st.sampled_from([1, 3])), draw(st.integers(4, 9))]
    x = torch.rand(*shape, 6, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    x = (x * draw(st.sampled_from([1.0, 1.5])) - draw(st.sampled_from([0.0, 0.25]))).clamp(0, 1)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    norm = draw(st.sampled_from(["linf", "l2"]))
    largest = 1.0 if norm == "linf" else 20.0
    eps = draw(st.floats(0, largest) | st.sampled_from([0.0, 1e-8, 1e-5, 8 / 255, 0.3]))
    how = {
        "start": draw(st.sampled_from(["clean", "random"])),
        "mode": draw(st.sampled_from(["represent", "evaluate", "last"])),
        "steps": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 9)),
    }
    return x, eps, norm, how


def assert_inside(attacked: Tensor, clean: Tensor, eps: float, norm: str) -> None:
    """In the box exactly, in the ball up to what float32 can say."""
    assert attacked.shape == clean.shape
    assert attacked.dtype == torch.float32
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    delta = (attacked.double() - clean.double()).flatten(1)
    ulp = 2.0**-24  # of pixels below 1, whose sums are rounded to it
    if norm == "linf":
        assert delta.abs().max() <= eps + ulp
    else:
        assert delta.norm(dim=1).max() <= eps * (1 + 1e-6) + ulp * math.sqrt(delta.shape[1])


@given(problems())
@settings(max_examples=60, deadline=None)
def test_never_outside_the_ball_or_the_box(
    problem: tuple[Tensor, float, str, dict[str, object]],
) -> None:
    x, eps, norm, how = problem
    model = ConvNet(x.shape[1])
    y = torch.arange(len(x)) % CLASSES
    for attacked in (
        pgd(model, x, y, eps=eps, norm=norm, **how),  # type: ignore[arg-type]
        fgsm(model, x, y, eps=eps, norm=norm),
        noise(model, x, y, eps=eps, norm=norm),
    ):
        assert_inside(attacked, x, eps, norm)
        if eps == 0:
            assert torch.equal(attacked, x)
        if x.is_contiguous(memory_format=torch.channels_last):
            assert attacked.is_contiguous(memory_format=torch.channels_last)


@given(problems(), st.floats(0, 3))
@settings(max_examples=30, deadline=None)
def test_projection_is_the_nearest_point_and_leaves_points_inside(
    problem: tuple[Tensor, float, str, dict[str, object]], scale: float
) -> None:
    x, eps, norm, _ = problem
    away = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * scale * max(eps, 0.01)
    point = project(x + away, x, eps, norm)
    assert_inside(point, x, eps, norm)
    torch.testing.assert_close(project(point, x, eps, norm), point, atol=1e-6, rtol=1e-6)
    if norm == "linf":
        torch.testing.assert_close(
            point, (x + away.clamp(-eps, eps)).clamp(0, 1), atol=1e-6, rtol=0
        )
    else:  # before clipping the nearest point lies on the ray from the clean image
        size = away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        wanted = x + away * (eps / size.clamp_min(1e-30)).clamp_max(1)
        torch.testing.assert_close(point, wanted.clamp(0, 1), atol=2e-6, rtol=1e-5)


def test_perturbation_norm() -> None:
    delta = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 1.0]]]])
    assert perturbation_norm(delta, "linf").tolist() == [4, 1]
    assert perturbation_norm(delta, "l2").tolist() == [5, 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_is_uniform_in_the_ball(norm: str) -> None:
    clean = torch.full((4000, 1, 2, 2), 0.5)
    delta = random_start(clean, 0.2, norm, ids=torch.arange(4000), seed=0).sub(clean).flatten(1)
    assert delta.mean(0).abs().max() < 0.01
    # In d dimensions the norm of a uniform point has distribution (r/eps)^d, in either norm.
    radius = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    quantile = (radius / 0.2).pow(4).sort().values
    expected = (torch.arange(4000) + 0.5) / 4000
    assert (quantile - expected).abs().max() < 1.63 / math.sqrt(4000)  # Kolmogorov, 1%


def test_steepest_has_norm_1_for_any_scale_of_gradient() -> None:
    torch.manual_seed(0)
    direction = torch.randn(1, 3, 4, 4)
    scales = torch.tensor([1e-30, 1e-20, 1.0, 1e20, 1e30]).view(-1, 1, 1, 1)
    found = steepest(direction * scales, "l2", direction * scales)
    wanted = direction / direction.norm()
    torch.testing.assert_close(found, wanted.expand_as(found), atol=1e-6, rtol=1e-5)
    zero = torch.zeros(2, 3, 4, 4)
    assert torch.equal(steepest(zero, "l2", zero), zero)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_tiny_gradients_still_move_by_the_full_size(norm: str) -> None:
    model, weight = linear()
    weight = weight.clone()
    with torch.no_grad():
        model[1].weight.mul_(1e-30)  # type: ignore[index]
    x = images(low=0.4, high=0.6)
    y = torch.zeros(len(x), dtype=torch.int64)
    wanted = closed_form(weight, x, y, 0.1, norm)
    for attacked in (
        fgsm(model, x, y, eps=0.1, norm=norm),
        pgd(model, x, y, eps=0.1, norm=norm, steps=4, start="clean"),
    ):
        torch.testing.assert_close(attacked, wanted, atol=1e-5, rtol=0)


# --- noise -----------------------------------------------------------------------------------


@given(st.floats(1e-3, 0.2), st.sampled_from(["linf", "l2"]), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_noise_has_exactly_the_size_of_the_attack(eps: float, norm: str, seed: int) -> None:
    x = images(4, low=0.3, high=0.7)
    ids = torch.tensor([7, -3, 7, 2**60])
    attacked = noise(nn.Identity(), x, torch.zeros(4), eps=eps, norm=norm, seed=seed, ids=ids)
    delta = attacked - x
    sizes = perturbation_norm(delta, norm)
    torch.testing.assert_close(sizes, torch.full_like(sizes, eps), atol=1e-6, rtol=1e-5)
    # Every pixel moves by the same amount, up or down; the id alone decides which.
    torch.testing.assert_close(delta.abs(), delta.abs().mean().expand_as(delta), atol=1e-6, rtol=0)
    assert torch.equal(delta[0] > 0, delta[2] > 0)
    assert not torch.equal(delta[0] > 0, delta[1] > 0)
    flipped = noise(nn.Identity(), x.flip(0), torch.zeros(4), eps=eps, norm=norm, seed=seed,
                    ids=ids.flip(0))  # fmt: skip
    assert torch.equal(flipped.flip(0), attacked)


def test_noise_is_not_the_sign_of_the_attacks_random_start() -> None:
    x, ids = torch.full((50, 3, 8, 8), 0.5), torch.arange(50)
    start = random_start(x, 0.1, "linf", ids=ids, seed=0) - x
    signs = noise(nn.Identity(), x, ids, eps=0.1, seed=0, ids=ids) - x
    agreement = (start.sign() == signs.sign()).double().mean()
    assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(start.numel())


# --- the network is left as it was -----------------------------------------------------------


class Fails(nn.Module):
    """Raises at its second forward, in the middle of an attack."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("broken on purpose")
        return self.head(self.norm(x).flatten(1))


def batch_norm_net() -> nn.Module:
    """In train mode but for one module in eval mode, one parameter frozen, gradients there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(4 * 36, CLASSES),
    ).train()  # fmt: skip
    model[4].eval()
    model[0].bias.requires_grad_(False)  # type: ignore[union-attr]
    model(images()).sum().backward()
    return model


def state(model: nn.Module) -> list[object]:
    return [
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.detach().clone() for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [b.clone() for b in model.buffers()],
    ]


def assert_same(found: object, wanted: object) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_the_network_is_left_as_it_was(attack: Callable[..., Tensor]) -> None:
    model = batch_norm_net()
    before = state(model)
    x = images()
    attack(model, x, torch.zeros(len(x), dtype=torch.int64), record={})
    assert_same(state(model), before)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_train_mode_moves_running_statistics_and_nothing_else(
    attack: Callable[..., Tensor],
) -> None:
    """What the papers' code does; the module that was in eval mode stays in it, and still."""
    model = batch_norm_net()
    before = state(model)
    x = images()
    attack(model, x, torch.zeros(len(x), dtype=torch.int64), train_mode=True)
    after = state(model)
    assert_same(after[:4], before[:4])
    moved, still = model[1], model[4]
    buffers = dict(zip([n for n, _ in model.named_buffers()], before[4], strict=True))  # type: ignore[call-overload]
    assert not torch.equal(moved.running_mean, buffers["1.running_mean"])
    assert torch.equal(still.running_mean, buffers["4.running_mean"])


@pytest.mark.parametrize("train_mode", [False, True])
def test_the_network_is_as_it_was_after_an_error_too(train_mode: bool) -> None:
    model = Fails().train()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    before = state(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        pgd(model, images(), torch.zeros(12, dtype=torch.int64), train_mode=train_mode)
    assert_same(state(model), before)


def test_frozen_nests() -> None:
    model = batch_norm_net()
    before = state(model)
    with frozen(model):
        with frozen(model, train_mode=True):
            assert not any(p.requires_grad for p in model.parameters())
            assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    assert_same(state(model), before)


def test_inputs_are_left_alone_and_the_result_has_no_graph(net: nn.Module) -> None:
    x = images().requires_grad_(True)
    kept = x.detach().clone()
    y = labels(net, x)
    for mode in ("represent", "evaluate", "last"):
        for attack in ("pgd", "fgsm", "noise"):
            spec = parse_attack(attack, eps=EPS)
            with torch.no_grad():  # a caller that needs no gradients; the attack does
                found = run_attack(spec, net, x, y, ids=torch.arange(12), seed=0, mode=mode)
            assert not found.requires_grad
            assert not torch.equal(found, kept) or mode == "evaluate"
    assert torch.equal(x, kept)
    assert x.grad is None


# --- draws belong to images ------------------------------------------------------------------


@given(st.integers(1, 11), st.integers(0, 3), st.sampled_from(["linf", "l2"]))
@settings(max_examples=20, deadline=None)
def test_random_starts_do_not_depend_on_the_batch(split: int, seed: int, norm: str) -> None:
    x, ids = images(), torch.arange(12) * 17 - 5
    whole = random_start(x, 0.1, norm, ids=ids, seed=seed, restart=1)
    parts = [
        random_start(x[rows], 0.1, norm, ids=ids[rows], seed=seed, restart=1)
        for rows in (slice(None, split), slice(split, None))
    ]
    assert torch.equal(whole, torch.cat(parts))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(whole[order], random_start(x[order], 0.1, norm, ids=ids[order], seed=seed,
                                                  restart=1))  # fmt: skip
    assert not torch.equal(whole, random_start(x, 0.1, norm, ids=ids, seed=seed, restart=0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mode", ["represent", "evaluate", "last"])
def test_attack_of_a_batch_is_the_attack_of_its_parts(net: nn.Module, mode: str, norm: str) -> None:
    x, ids = images(), torch.arange(12) * 17 - 5
    y = labels(net, x)
    spec = parse_attack(f"pgd,norm={norm},eps=0.02,steps=5,restarts=2", eps=EPS)

    def attacked(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        record: dict[str, Tensor] = {}
        found = run_attack(
            spec, net, x[rows], y[rows], ids=ids[rows], seed=1, mode=mode, record=record
        )
        return found, record["loss"], record["first_success"]

    whole = attacked(torch.arange(12))
    for split in (
        torch.arange(12).split(5),
        torch.tensor([3, 9, 0, 1, 11, 2, 4, 8, 5, 7, 6, 10]).split(4),
    ):
        parts = [torch.cat(part) for part in zip(*(attacked(rows) for rows in split), strict=True)]
        order = torch.cat(split)
        # Other batch sizes add in other orders: a sign may turn where the gradient is about 0.
        assert (parts[0] - whole[0][order]).abs().mean() < 1e-4
        torch.testing.assert_close(parts[1], whole[1][order], atol=1e-3, rtol=1e-3)
        assert torch.equal(parts[2], whole[2][order])


# --- the modes -------------------------------------------------------------------------------


def close_but_for_ties(found: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    """Equal but for pixels whose gradient is so near 0 that rounding turns its sign."""
    assert ((found - wanted).abs() > atol).double().mean() < 1e-3


def iterates(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, steps: int, restart: int, seed: int = 0
) -> Iterator[Tensor]:
    """A naive linf PGD written down once more: every iterate, the start included."""
    ids = torch.arange(len(x))
    adv = random_start(x, eps, "linf", ids=ids, seed=seed, restart=restart)
    yield adv
    for _ in range(steps):
        adv = adv.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv), y, reduction="sum"), adv)
        adv = (adv + 2.5 * eps / steps * gradient.sign()).detach()
        adv = torch.min(torch.max(adv, x - eps), x + eps).clamp(0, 1)
        yield adv


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("eps", [0.005, 0.02, 0.06])
def test_modes_against_all_iterates_of_a_naive_loop(
    net: nn.Module, eps: float, restarts: int
) -> None:
    x, steps = images(40), 6
    y = labels(net, x)
    y[:4] = (y[:4] + 1) % CLASSES  # some that are wrong from the start on
    paths = torch.stack(
        [
            torch.stack(list(iterates(net, x, y, eps=eps, steps=steps, restart=r)))
            for r in range(restarts)
        ]
    )  # (restarts, steps + 1, batch, c, h, w)
    flat = paths.flatten(0, 2)
    target = y.repeat(restarts * (steps + 1))
    loss = losses(net, flat, target).view(restarts, steps + 1, -1)
    wrong = (labels(net, flat) != target).view(restarts, steps + 1, -1)
    first_of_run = torch.where(wrong.any(1), wrong.float().argmax(1), steps + 1)
    options = {"eps": eps, "steps": steps, "restarts": restarts}

    record: dict[str, Tensor] = {}
    strongest = pgd(net, x, y, mode="represent", record=record, **options)  # type: ignore[arg-type]
    best = loss[:, 1:].flatten(0, 1).max(0)
    torch.testing.assert_close(record["loss"], best.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses(net, strongest, y), record["loss"], atol=1e-4, rtol=1e-4)
    wanted = paths[:, 1:].flatten(0, 1)[best.indices, torch.arange(len(x))]
    close_but_for_ties(strongest, wanted)
    first = first_of_run.min(0).values
    first[first > steps] = -1
    assert torch.equal(record["first_success"], first)
    assert (perturbation_norm(strongest - x, "linf") > 0).all()  # every image moved

    last = pgd(net, x, y, mode="last", record=(last_record := {}), **options)  # type: ignore[arg-type, var-annotated]
    assert (record["loss"] >= last_record["loss"]).all()
    torch.testing.assert_close(losses(net, last, y), last_record["loss"], atol=1e-4, rtol=1e-4)
    assert torch.equal(labels(net, last) != y, wrong[:, -1].any(0))
    if restarts == 1:
        torch.testing.assert_close(last, paths[0, -1], atol=1e-5, rtol=0)
        # Without a record nothing is looked at; the iterates are the same to the bit.
        assert torch.equal(pgd(net, x, y, mode="last", **options), last)  # type: ignore[arg-type]

    verdict = pgd(net, x, y, mode="evaluate", record=(record := {}), **options)  # type: ignore[arg-type]
    fooled = wrong.any(0).any(0)
    assert torch.equal(record["first_success"] >= 0, fooled)
    assert torch.equal(labels(net, verdict) != y, fooled)
    run = wrong.any(1).float().argmax(0)  # the first restart that fools, and its first iterate
    when = first_of_run[run, torch.arange(len(x))]
    assert torch.equal(record["first_success"][fooled], when[fooled])
    torch.testing.assert_close(
        verdict[fooled], paths[run, when.clamp_max(steps), torch.arange(len(x))][fooled],
        atol=1e-5, rtol=0,
    )  # fmt: skip
    torch.testing.assert_close(losses(net, verdict, y), record["loss"], atol=1e-4, rtol=1e-4)
    if 0.005 < eps < 0.06:
        assert 0.1 < fooled.double().mean() < 0.95  # the test sees both kinds


class Peak(nn.Module):
    """The loss of class 0 is highest just beside the clean image: every step overshoots."""

    def forward(self, x: Tensor) -> Tensor:
        margin = 100 * (x.flatten(1).mean(1) - 0.505).pow(2)
        return torch.stack([margin, 0 * margin], 1)


@pytest.mark.parametrize("mode", ["represent", "last"])
def test_the_start_is_not_an_attacked_image(mode: str) -> None:
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    record: dict[str, Tensor] = {}
    found = pgd(Peak(), x, y, eps=0.1, steps=1, step_size=0.05, start="clean", mode=mode,
                record=record)  # fmt: skip
    torch.testing.assert_close(found, x + 0.05)
    assert (record["loss"] < losses(Peak(), x, y)).all()


def test_evaluate_runs_only_what_is_not_fooled_yet(net: nn.Module) -> None:
    x = images(40)
    y = labels(net, x)
    steps = 8
    record: dict[str, Tensor] = {}
    counter = Counter(net)
    pgd(counter, x, y, eps=0.02, steps=steps, mode="evaluate", record=record)
    first = record["first_success"]
    visits = torch.where(first < 0, steps, first) + 1
    assert counter.images == int(visits.sum())
    assert counter.images < 40 * steps
    assert counter.forwards == int(visits.max())

    # All fooled at the start: one forward, however many steps and restarts.
    counter = Counter(net)
    wrong = (y + 1) % CLASSES
    found = pgd(counter, x, wrong, eps=1e-6, steps=steps, restarts=3, mode="evaluate")
    assert counter.forwards == 1
    assert torch.equal(found, random_start(x, 1e-6, "linf", ids=torch.arange(40), seed=0))


@pytest.mark.parametrize(("mode", "forwards"), [("represent", 9), ("last", 8)])
def test_full_strength_costs_no_more_forwards_than_it_must(
    net: nn.Module, mode: str, forwards: int
) -> None:
    x = images()
    counter = Counter(net)
    pgd(counter, x, labels(net, x), eps=0.3, steps=8, mode=mode)
    assert counter.forwards == forwards  # success stops nothing
    assert counter.images == forwards * len(x)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mode", ["represent", "evaluate", "last"])
def test_restarts_only_ever_help(net: nn.Module, mode: str, norm: str) -> None:
    x = images(40)
    y = labels(net, x)
    eps = 0.012 if norm == "linf" else 0.1
    fooled, loss = torch.zeros(40, dtype=torch.bool), torch.full((40,), -torch.inf)
    counts = []
    for restarts in (1, 2, 4):
        record: dict[str, Tensor] = {}
        found = pgd(
            net, x, y, eps=eps, norm=norm, steps=2, restarts=restarts, mode=mode, record=record
        )
        now = labels(net, found) != y
        if mode == "represent":
            assert (record["loss"] >= loss - 1e-5).all()
            loss = record["loss"]
        else:
            assert not (fooled & ~now).any()
            fooled = now
        counts.append(int((record["first_success"] >= 0).sum()))
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 40


def test_of_two_restarts_the_misclassified_one_is_kept_even_at_a_lower_loss() -> None:
    """With three classes a misclassified image can have the smaller cross-entropy."""

    class Switch(nn.Module):
        """Logits by the restart: right at loss log 3, or wrong at loss .69..."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            first = self.calls <= 2
            logits = torch.tensor([0.01, 0.0, 0.0] if first else [5.0, 5.01, -9.0])
            return logits + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
    record: dict[str, Tensor] = {}
    found = pgd(Switch(), x, y, eps=0.1, steps=1, restarts=2, mode="last", record=record)
    assert record["loss"].item() == pytest.approx(0.698, abs=1e-3)
    ids = torch.zeros(1, dtype=torch.int64)
    assert torch.equal(found, random_start(x, 0.1, "linf", ids=ids, seed=0, restart=1))


def test_fgsm_record(net: nn.Module) -> None:
    x = images(40)
    y = labels(net, x)
    record: dict[str, Tensor] = {}
    found = fgsm(net, x, y, eps=0.02, record=record)
    wrong = labels(net, found) != y
    assert torch.equal(record["first_success"], torch.where(wrong, 1, -1))
    torch.testing.assert_close(record["loss"], losses(net, found, y))
    assert 0 < wrong.sum() < 40


# --- another implementation ------------------------------------------------------------------


def test_fgsm_is_torchattacks(net: nn.Module) -> None:
    x = images()
    y = labels(net, x)
    close_but_for_ties(fgsm(net, x, y, eps=EPS), torchattacks.FGSM(net, eps=EPS)(x, y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["clean", "random"])
def test_pgd_is_torchattacks(
    net: nn.Module, norm: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images()
    y = labels(net, x)
    eps, alpha, steps = (EPS, 2 / 255, 7) if norm == "linf" else (0.5, 0.15, 7)
    if start == "random":
        # Both begin at the same point: theirs draws a delta, which is made to be ours.
        delta = random_start(x, eps, norm, ids=torch.arange(12), seed=0) - x
        monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, a=0, b=1: self.copy_(
            delta if norm == "linf" else torch.ones_like(self)))  # fmt: skip
        monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *a, **k: self.copy_(delta))
    if norm == "linf":
        reference = torchattacks.PGD(net, eps, alpha, steps, random_start=start == "random")
    else:
        reference = torchattacks.PGDL2(net, eps, alpha, steps, random_start=start == "random")
        if start == "random":  # its delta is rescaled to radius r·eps, r uniform; so is ours here
            radius = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / eps
            monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, a=0, b=1: self.copy_(radius))
    wanted = reference(x, y)
    found = pgd(
        net, x, y, eps=eps, norm=norm, steps=steps, step_size=alpha, start=start, mode="last"
    )
    close_but_for_ties(found, wanted, atol=2e-5)
    assert (perturbation_norm(found - x, norm) > 0.5 * eps).all()


# --- what cannot be meant --------------------------------------------------------------------


@pytest.mark.parametrize("attack", [fgsm, pgd, noise])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images() * 2 - 1, r"pixels in \[0, 1\]; got \[-"),
        (images() * 255, r"pixels in \[0, 1\]; got .*pass pixels and let the model normalise"),
        (torch.full((12, 3, 8, 8), torch.nan), r"pixels in \[0, 1\]; got \[nan"),
        (images().masked_fill(images() > 0.9, torch.inf), r"got \[.*inf"),
        ((images() * 255).to(torch.uint8), "float pixels .*uint8"),
        (images()[:3], "one an image; got 12 for 3"),
    ],
    ids=["normalised", "0-255", "nan", "inf", "uint8", "labels"],
)
def test_images_that_are_no_pixels(
    attack: Callable[..., Tensor], x: Tensor, message: str, net: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        attack(net, x, torch.zeros(12, dtype=torch.int64))


@pytest.mark.parametrize("attack", [fgsm, pgd, noise])
@pytest.mark.parametrize(
    ("eps", "norm", "message"),
    [
        (8, "linf", "0-255 units; try 8/255"),
        (1.0001, "linf", "units"),
        (-0.1, "linf", "at least 0"),
        (-1.0, "l2", "at least 0"),
        (math.nan, "linf", "at least 0"),
        (math.inf, "l2", "at least 0"),
        (0.1, "l0", "linf, l2, l1; got 'l0'"),
    ],
)
def test_sizes_that_cannot_be_meant(
    attack: Callable[..., Tensor], eps: float, norm: str, message: str, net: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        attack(net, images(), torch.zeros(12, dtype=torch.int64), eps=eps, norm=norm)
    check_ball(1.0, "linf")
    check_ball(8.0, "l2")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "at least 1; got 0"),
        ({"restarts": 0}, "at least 1"),
        ({"step_size": -0.1}, "above 0"),
        ({"step_size": 0.0}, "above 0"),
        ({"step_size": math.inf}, "above 0"),
        ({"step_size": math.nan}, "above 0"),
        ({"step_size": 2.0}, "try 2/255"),
        ({"start": "zero"}, "'random' or 'clean'; got 'zero'"),
        ({"start": "clean", "restarts": 2}, "random starts"),
        ({"mode": "best"}, "represent, evaluate, last; got 'best'"),
    ],
)
def test_settings_of_pgd_that_cannot_be_meant(
    wrong: dict[str, object], message: str, net: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        pgd(net, images(), torch.zeros(12, dtype=torch.int64), **wrong)  # type: ignore[arg-type]


class Root(nn.Module):
    """Finite logits whose gradient is NaN: sqrt at 0, times 0."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) + 0 * torch.sqrt(0 * x.flatten(1).sum(1, keepdim=True))


@pytest.mark.parametrize("mode", ["represent", "evaluate"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_broken_gradient_is_not_robustness(mode: str, norm: str) -> None:
    model, x = Root(), images()
    y = labels(model, x)
    with pytest.raises(UserError, match="finite loss and gradient"):
        pgd(model, x, y, norm=norm, steps=2, mode=mode, record={})
    with pytest.raises(UserError, match="finite loss and gradient"):
        fgsm(model, x, y, norm=norm, record={})


def test_noise_control_is_the_noise_one_would_type() -> None:
    assert noise_control(0.1) == parse_attack("noise", eps=0.1)
    assert noise_control(0.5, "l2") == parse_attack("noise,norm=l2,eps=0.5", eps=0.1)
    assert noise_control(0.1).is_control
    assert noise_control(0.1).condition == "noise"


# --- what every attack does with odd input ------------------------------------------------------

SIZED: dict[str, dict[str, object]] = {
    "fgsm": {}, "r-fgsm": {}, "pgd": {"steps": 3}, "mim": {"steps": 3}, "apgd": {"steps": 5},
    "fab": {"steps": 4}, "square": {"queries": 8}, "autoattack": {"version": "short"},
    "contrastive": {"steps": 3}, "instance": {"steps": 3}, "feature": {"steps": 3},
    "cka": {"steps": 3}, "noise": {}, "cw-l2": {"steps": 5, "binary_search": 2}, "deepfool": {},
}  # fmt: skip
CLASSIFY = [n for n in SIZED if n not in (*REPRESENTATION, "noise")]


def make(name: str, net: nn.Module, x: Tensor, y: Tensor, **settings: object) -> Tensor:
    return ATTACKS[name](net, x, y, **{**SIZED[name], **settings})


@pytest.mark.parametrize("name", SIZED)
def test_eps_0_gives_the_images_back(name: str, net: nn.Module) -> None:
    x = images()
    assert torch.equal(make(name, net, x, labels(net, x), eps=0.0), x)


@pytest.mark.parametrize("name", SIZED)
def test_a_batch_of_one(name: str, net: nn.Module) -> None:
    x = images(batch=1)
    if name == "cka":
        with pytest.raises(UserError, match="at least 4"):
            make(name, net, x, labels(net, x))
        return
    attacked = make(name, net, x, labels(net, x))
    assert attacked.shape == x.shape
    assert attacked.min() >= 0
    assert attacked.max() <= 1


@pytest.mark.parametrize("name", SIZED)
def test_images_outside_the_box_are_refused_by_all(name: str, net: nn.Module) -> None:
    x = images()
    for wrong in (x * 4 - 2, x * 255):  # normalised, or not divided by 255
        with pytest.raises(UserError, match=r"pixels in \[0, 1\]; got .*normalise inside"):
            make(name, net, wrong, labels(net, x))


@pytest.mark.parametrize("name", CLASSIFY)
def test_labels_that_are_no_classes(name: str, net: nn.Module) -> None:
    x = images()
    y = labels(net, x)
    y[3] = CLASSES
    with pytest.raises(UserError, match=f"classes 0 to {CLASSES - 1}.*got {CLASSES}"):
        make(name, net, x, y)
    y[3] = -1
    with pytest.raises(UserError, match="got -1"):
        make(name, net, x, y)


@pytest.mark.parametrize("name", CLASSIFY)
def test_outputs_that_are_no_logits(name: str) -> None:
    x, y = images(), torch.zeros(12, dtype=torch.int64)
    with pytest.raises(UserError, match=r"logits of shape \(12, classes\); got \(12, 3, 8, 8\)"):
        make(name, nn.Identity(), x, y)
    probabilities = nn.Sequential(ConvNet().eval(), nn.Softmax(1))
    with pytest.raises(UserError, match=r"got probabilities.*return what goes into the softmax"):
        make(name, probabilities, x, y)


class Breaks(nn.Module):
    """NaN where an image is brighter than it was."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.net, self.clean = ConvNet().eval(), clean

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        changed = (x[:1] != self.clean[:1]).any()
        return torch.where(changed, torch.nan, logits)


@pytest.mark.parametrize("name", [n for n in CLASSIFY if n not in ("fgsm", "r-fgsm")])
@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_nan_is_not_robustness(name: str, mode: str) -> None:
    x = images()
    net = Breaks(x)
    with pytest.raises(UserError, match="NaN or inf"):
        make(name, net, x, labels(net, x), mode=mode)


@pytest.mark.parametrize("name", SIZED)
def test_every_attack_leaves_the_network_alone(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, CLASSES),
    ).train()  # fmt: skip
    net[2].eval()
    net[0].bias.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = images()
    make(name, net, x, torch.arange(12) % CLASSES)
    assert [m.training for m in net] == [True, True, False, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True, True, True]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    grads = [p.grad for p in net.parameters()]
    assert torch.equal(grads[4], torch.ones_like(net[5].weight))
    assert all(g is None for i, g in enumerate(grads) if i != 4)


@given(
    st.sampled_from(["pgd", "mim", "apgd", "square", "feature", "instance", "contrastive"]),
    st.sampled_from(["linf", "l2", "l1"]), st.floats(1e-3, 0.9), st.integers(1, 5), st.booleans(),
    st.sampled_from(["represent", "evaluate"]), st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_attack_leaves_ball_or_box(
    name: str, norm: str, eps: float, batch: int, channels_last: bool, mode: str, seed: int
) -> None:
    eps = eps * {"linf": 1, "l2": 3, "l1": 20}[norm]
    if norm == "linf":
        eps = min(eps, 1.0)
    net, x = ConvNet().eval(), images(batch)
    y = labels(net, x)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    attacked = make(name, net, x, y, eps=eps, norm=norm, mode=mode, seed=seed)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    size = perturbation_norm(attacked.double() - x.double(), norm)
    # One ulp of a pixel for linf; for a sum of squares or sizes, rounding of that sum.
    slack = 2**-23 if norm == "linf" else eps * 1e-5
    assert float(size.max()) <= eps + slack
    again = make(name, net, x, y, eps=eps, norm=norm, mode=mode, seed=seed)
    assert torch.equal(attacked, again)


@pytest.mark.parametrize("kind", ["sign", "uniform"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_noise_of_either_kind_has_the_attacks_size(kind: str, norm: str) -> None:
    x = torch.full((6, 3, 8, 8), 0.5)
    eps = {"linf": 0.1, "l2": 0.8, "l1": 9.0}[norm]
    y = torch.zeros(6, dtype=torch.int64)
    found = noise(nn.Identity(), x, y, eps=eps, norm=norm, kind=kind)
    sizes = perturbation_norm(found - x, norm)
    torch.testing.assert_close(sizes, torch.full((6,), eps), rtol=1e-4, atol=1e-6)
    spread = (found - x).abs().flatten(1).std(1)
    assert (spread < 1e-6).all() if kind == "sign" else (spread > 1e-4).all()
    with pytest.raises(UserError, match="kind expects one of sign, uniform; got 'gauss'"):
        noise(nn.Identity(), x, y, kind="gauss")


def test_r_fgsm_is_a_random_step_and_then_a_gradient_step() -> None:
    model, weight = linear()
    x = images(low=0.3, high=0.7)
    y = torch.arange(len(x)) % 2
    gradient = (weight[1 - y] - weight[y]).view_as(x).sign()
    found = rfgsm(model, x, y, eps=0.1) - x
    # Half the size in a random direction, half along the gradient: 0 or the full size.
    along = found * gradient
    assert set((along / 0.1).round(decimals=3).unique().tolist()) == {0.0, 1.0}
    assert abs(float((along > 0.05).float().mean()) - 0.5) < 0.1
    torch.testing.assert_close(
        rfgsm(model, x, y, eps=0.1, random_step=0.0), fgsm(model, x, y, eps=0.1)
    )
    assert not torch.equal(rfgsm(model, x, y, seed=1), rfgsm(model, x, y, seed=2))
    with pytest.raises(UserError, match="random_step expects a number between 0 and eps"):
        rfgsm(model, x, y, eps=0.1, random_step=0.2)


def test_mim_is_torchattacks(net: nn.Module) -> None:
    x = images()
    y = labels(net, x)
    wanted = torchattacks.MIFGSM(net, eps=EPS, alpha=EPS / 10, steps=10, decay=0.9)(x, y)
    found = mim(net, x, y, eps=EPS, steps=10, decay=0.9, mode="last")
    assert (found - wanted).abs().gt(1e-6).float().mean() < 0.01  # signs of all but 0
    torch.testing.assert_close(losses(net, found, y), losses(net, wanted, y), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="decay expects"):
        mim(net, x, y, decay=-1.0)


def test_mim_without_decay_is_pgd_and_ends_the_same_in_parts(net: nn.Module) -> None:
    x = images()
    y = labels(net, x)
    plain = {"eps": EPS, "steps": 6, "step_size": EPS / 4, "start": "clean"}
    torch.testing.assert_close(mim(net, x, y, decay=0.0, **plain), pgd(net, x, y, **plain))
    for mode in ("represent", "evaluate"):
        whole = mim(net, x, y, eps=EPS, mode=mode)
        parts = [mim(net, x[i : i + 1], y[i : i + 1], eps=EPS, mode=mode) for i in range(12)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin", "kl"])
def test_losses_by_name(loss: str, net: nn.Module) -> None:
    x = images()
    y = labels(net, x)
    record: dict[str, Tensor] = {}
    attacked = pgd(net, x, y, eps=EPS, loss=loss, record=record)
    wanted = {
        "ce": lambda z: F.cross_entropy(z, y, reduction="none"),
        "dlr": lambda z: dlr(z, y), "margin": lambda z: margin(z, y), "kl": lambda z: kl(z, net(x)),
    }[loss](net(attacked))  # fmt: skip
    torch.testing.assert_close(record["loss"], wanted.detach(), rtol=1e-4, atol=1e-5)


class Jitter(nn.Module):
    """A linear network whose weights carry noise of their own at each forward."""

    def __init__(self, weight: Tensor, spread: float) -> None:
        super().__init__()
        self.weight, self.spread = weight, spread

    def forward(self, x: Tensor) -> Tensor:
        noisy = self.weight + self.spread * torch.randn_like(self.weight)
        return x.flatten(1) @ noisy.T


def test_averaging_over_draws_finds_the_direction_that_one_draw_misses() -> None:
    model, weight = linear()
    x = images(low=0.4, high=0.6)
    y = torch.arange(len(x)) % 2
    gains = []
    for eot in (1, 40):
        torch.manual_seed(0)
        attacked = pgd(Jitter(weight, 0.1), x, y, eps=0.05, steps=5, eot=eot, mode="last")
        gains.append(float((losses(model, attacked, y) - losses(model, x, y)).mean()))
    assert gains[1] > 1.3 * gains[0]


@given(
    st.sampled_from(["fgsm", "r-fgsm", "pgd", "mim", "apgd", "square", "noise"]),
    st.sampled_from(["linf", "l2", "l1"]), st.floats(0.01, 0.4), st.integers(0, 9),
    st.sampled_from([torch.float16, torch.bfloat16]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_images_in_16_bits_stay_in_the_ball(
    name: str, norm: str, eps: float, seed: int, dtype: torch.dtype
) -> None:
    x = images(3, size=6).to(dtype)
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, CLASSES)).to(dtype)
    y = torch.zeros(3, dtype=torch.int64)
    if name == "r-fgsm":
        settings_, norm = {}, "linf"
    else:
        eps = eps * {"linf": 1, "l2": 3, "l1": 20}[norm]
        settings_ = {"norm": norm}
    more = {} if name == "fgsm" else {"seed": seed}
    attacked = make(name, net, x, y, eps=eps, **settings_, **more)
    assert attacked.dtype == dtype
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    size = perturbation_norm(attacked.double() - x.double(), norm)
    assert float(size.max()) <= eps * (1 + 1e-6)
