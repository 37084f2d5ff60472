"""Auto-PGD: the authors' trajectories, the modes, closed forms."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from test_attacks import (
    CLASSES,
    ConvNet,
    Counter,
    Root,
    assert_same,
    batch_norm_net,
    images,
    labels,
    linear,
    losses,
    state,
)
from torch import Tensor, nn

from repsim.attacks.apgd import (
    Climb,
    Targeted,
    apgd,
    auto_ascend,
    checkpoints,
    radii,
    start_of_run,
)
from repsim.attacks.objective import Classify
from repsim.checkpoint import LoadedModel
from repsim.data.images import ImageData, to_float
from repsim.errors import UserError
from repsim.losses import LOSSES, margin

REFERENCE = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.02, "l2": 0.15, "l1": 1.0}


@pytest.fixture
def net() -> nn.Module:
    return ConvNet().eval()


# --- the authors' code -----------------------------------------------------------------------


class Mended:
    """The authors' APGD but for its first comparison, which is made with 0, not with the start.

    Its losses lie in a table that begins with the first step's; the row before is the last one,
    which is still 0. `table[-1]` is filled with the start's here.
    """

    start_loss: Tensor

    def check_oscillation(self, x: Tensor, j: int, k: int, y5: Tensor, k3: float) -> Tensor:
        x = x.clone()
        if j == k - 1:
            x[-1] = self.start_loss
        return super().check_oscillation(x, j, k, y5, k3)  # type: ignore[misc]


class MendedApgd(Mended, APGDAttack):
    pass


class MendedTargeted(Mended, APGDAttack_targeted):
    pass


def second_class(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).scatter(1, y[:, None], -1e9).argmax(1)


def both(
    net: nn.Module, x: Tensor, y: Tensor, norm: str, loss: str, steps: int, eps: float
) -> tuple[APGDAttack, Climb]:
    """Their attack and ours of the same settings."""
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    if loss == "dlr-targeted":
        theirs = MendedTargeted(net, n_iter=steps, norm=REFERENCE[norm], eps=eps)
        theirs.y_target = second_class(net, x, y)
        objective = Targeted(net, y, theirs.y_target)
    else:
        theirs = MendedApgd(net, n_iter=steps, norm=REFERENCE[norm], eps=eps, loss=loss)
        objective = Classify(net, y, LOSSES[loss])
    theirs.init_hyperparam(x)
    return theirs, Climb(objective, eps, norm, steps)


def start_both(theirs: APGDAttack, ours: Climb, start: Tensor) -> None:
    with torch.no_grad():
        theirs.start_loss = ours.objective(start, torch.arange(len(start)))[0]


def images_that_differ(found: Tensor, wanted: Tensor, atol: float = 1e-5) -> int:
    return int(((found - wanted).abs().flatten(1).amax(1) > atol).sum())


@pytest.mark.parametrize("steps", [1, 10, 25])
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_run_is_the_authors(net: nn.Module, norm: str, loss: str, steps: int) -> None:
    x = images(40)
    y = labels(net, x)
    y[:2] = (y[:2] + 1) % CLASSES
    theirs, ours = both(net, x, y, norm, loss, steps, EPS[norm])
    rows = torch.arange(40)
    start = start_of_run(x, EPS[norm], norm, ids=rows, seed=0, run=0)
    start_both(theirs, ours, start)
    best, right, best_loss, _ = theirs.attack_single_run(x, y, x_init=start)
    found, loss_found, first = ours(start, x, rows, leave=False)
    assert torch.equal(first < 0, right.bool())
    if norm == "linf":
        assert torch.equal(found, best)
        assert torch.equal(loss_found, best_loss)
    else:  # rounded elsewhere; near the optimum that decides which of two equal losses is higher
        assert images_that_differ(found, best) <= (0 if steps <= 10 else 6)
        assert images_that_differ(found, best, 1e-3) <= (0 if steps <= 10 else 3)
        assert ((loss_found - best_loss).abs() > 1e-4).sum() <= (0 if steps <= 10 else 2)
    assert 5 < (first >= 0).sum() < 35 or steps == 1

    left, _, left_first = ours(start, x, rows, leave=True)
    assert torch.equal(left_first, first)
    with torch.no_grad():
        assert torch.equal(net(left).argmax(1) != y, first >= 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_authors_code_as_it_is(net: nn.Module, norm: str) -> None:
    """Where the first step raises a loss above 0, its first comparison is right."""
    x = images(40)
    y = labels(net, x)
    theirs, ours = both(net, x, y, norm, "ce", 40, EPS[norm])
    theirs = APGDAttack(net, n_iter=40, norm=REFERENCE[norm], eps=EPS[norm], loss="ce")
    theirs.init_hyperparam(x)
    start = start_of_run(x, EPS[norm], norm, ids=torch.arange(40), seed=1, run=0)
    best, right, best_loss, _ = theirs.attack_single_run(x, y, x_init=start)
    found, loss, first = ours(start, x, torch.arange(40), leave=False)
    assert torch.equal(first < 0, right)
    assert images_that_differ(found, best, 1e-3) <= (0 if norm == "linf" else 3)
    assert ((loss - best_loss).abs() > 1e-4).sum() <= (0 if norm == "linf" else 2)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_start_is_the_authors(
    net: nn.Module, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs is given our draws, and makes the start of them itself. For l1 that run is dense."""
    x, rows = (images(40) * 1.5 - 0.25).clamp(0, 1), torch.arange(40)
    y = labels(net, x)
    theirs, ours = both(net, x, y, norm, "ce", 25, EPS[norm])
    raw: list[Tensor] = []
    for draw in ("keyed_uniform", "keyed_normal"):
        module = sys.modules["repsim.attacks.apgd"]  # the package has a function of that name
        original = getattr(module, draw)

        def kept(*a: object, original: Callable[..., Tensor] = original, **k: object) -> Tensor:
            raw.append(original(*a, **k))
            return raw[-1].clone()

        monkeypatch.setattr(module, draw, kept)
    start = start_of_run(x, EPS[norm], norm, ids=rows, seed=4, run=2)
    start_both(theirs, ours, start)
    monkeypatch.setattr(torch, "rand", lambda shape: raw[0].clone())
    monkeypatch.setattr(torch, "randn", lambda shape: raw[0].clone())
    best, right, best_loss, _ = theirs.attack_single_run(x, y)
    found, loss, first = ours(start, x, rows, leave=False, dense=True)
    assert torch.equal(first < 0, right)
    assert images_that_differ(found, best, 1e-3) <= 3
    assert ((loss - best_loss).abs() > 1e-4).sum() <= 1


def test_large_radii_are_the_authors(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, rows, steps, eps = images(40), torch.arange(40), 40, 1.0
    y = labels(net, x)
    theirs, _ = both(net, x, y, "l1", "ce", steps, eps)
    first_start = start_of_run(x, 3 * eps, "l1", ids=rows, seed=0, run=0)
    monkeypatch.setattr(torch, "randn_like", lambda like: first_start - like)
    schedule = radii(eps, steps)
    assert schedule == [(3.0, 12), (2.0, 12), (1.0, 16)]
    best, right, best_loss, _ = theirs.decr_eps_pgd(x, y, *map(list, zip(*schedule, strict=True)))
    record: dict[str, Tensor] = {}
    found = apgd(net, x, y, eps=eps, norm="l1", steps=steps, record=record)
    assert images_that_differ(found, best) <= 4
    assert ((record["loss"] - best_loss).abs() > 1e-4).sum() <= 2
    assert torch.equal(record["first_success"] < 0, right)
    assert (record["first_success"][record["first_success"] >= 0] >= 24).all()
    without: dict[str, Tensor] = {}
    apgd(net, x, y, eps=eps, norm="l1", steps=steps, large_radius=False, record=without)
    assert not torch.equal(without["loss"], record["loss"])


@pytest.mark.parametrize("steps", range(1, 12))
def test_radii_use_exactly_the_steps(steps: int) -> None:
    schedule = radii(2.0, steps)
    assert sum(length for _, length in schedule) == steps
    assert all(length > 0 for _, length in schedule)
    assert schedule[-1][0] == 2.0


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 33, 50, 100, 101, 1000])
def test_checkpoints_are_the_authors(steps: int) -> None:
    theirs = APGDAttack(None, n_iter=steps, eps=0.1)
    wanted, counter, k = [], 0, theirs.n_iter_2
    for i in range(steps):
        counter += 1
        if counter == k:
            wanted.append(i + 1)
            counter, k = 0, max(k - theirs.size_decr, theirs.n_iter_min)
    assert checkpoints(steps) == wanted
    if steps == 100:
        assert wanted == [22, 41, 57, 70, 80, 87, 93, 99]
        assert theirs.thr_decr == 0.75  # our rho


# --- a trained network -----------------------------------------------------------------------


@pytest.fixture
def digits(loaded: LoadedModel, digits_test: ImageData) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = to_float(digits_test.images)[:80], digits_test.labels[:80]
    with torch.no_grad():
        right = loaded.model(x).argmax(1) == y
    return loaded.model, x[right][:32], y[right][:32]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.5), ("l1", 1.5)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_verdicts_on_a_trained_network_are_the_authors(
    digits: tuple[nn.Module, Tensor, Tensor], norm: str, eps: float, loss: str
) -> None:
    net, x, y = digits
    record: dict[str, Tensor] = {}
    options = {"eps": eps, "norm": norm, "steps": 20, "loss": loss, "large_radius": False}
    found = apgd(net, x, y, mode="evaluate", record=record, **options)  # type: ignore[arg-type]
    lost = record["first_success"] >= 0
    with torch.no_grad():
        assert torch.equal(net(found).argmax(1) != y, lost)
    assert 0.1 < lost.double().mean() < 0.95

    start = start_of_run(x, eps, norm, ids=torch.arange(len(x)), seed=0, run=0)
    theirs, ours = both(net, x, y, norm, loss, 20, eps)
    start_both(theirs, ours, start)
    if norm != "l1":
        _, right, _, _ = theirs.attack_single_run(x, y, x_init=start)
        assert torch.equal(lost, ~right)
    # From starts of their own the verdicts differ by chance only.
    plain = APGDAttack(net, n_iter=20, norm=REFERENCE[norm], eps=eps, loss=loss)
    with torch.no_grad():
        lost_there = net(plain.perturb(x, y)).argmax(1) != y
    assert abs(int(lost.sum()) - int(lost_there.sum())) <= 3
    assert (lost != lost_there).sum() <= 8


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l1", 1.5)])
def test_targets_on_a_trained_network_are_the_authors(
    digits: tuple[nn.Module, Tensor, Tensor], norm: str, eps: float
) -> None:
    net, x, y = digits
    options = {"eps": eps, "norm": norm, "steps": 15, "loss": "dlr-targeted", "targets": 3}
    record: dict[str, Tensor] = {}
    apgd(net, x, y, mode="evaluate", large_radius=False, record=record, **options)  # type: ignore[arg-type]
    lost, margins = torch.zeros(len(x), dtype=torch.bool), []
    with torch.no_grad():
        order = net(x).sort(dim=1).indices
    for target in range(3):
        start = start_of_run(x, eps, norm, ids=torch.arange(len(x)), seed=0, run=target)
        theirs, ours = both(net, x, y, norm, "dlr-targeted", 15, eps)
        theirs.y_target = order[:, -2 - target]
        ours = Climb(Targeted(net, y, theirs.y_target), eps, norm, 15)
        start_both(theirs, ours, start)
        if norm == "linf":
            best, right, _, _ = theirs.attack_single_run(x, y, x_init=start)
        else:  # dense, which the authors' code is for its own starts only
            best, _, first = ours(start, x, torch.arange(len(x)), leave=False, dense=True)
            right = first < 0
        lost |= ~right
        with torch.no_grad():
            margins.append(margin(net(best), y))
    assert torch.equal(record["first_success"] >= 0, lost)
    assert 0.1 < lost.double().mean() < 0.95
    found = apgd(net, x, y, mode="represent", large_radius=False, record=record, **options)  # type: ignore[arg-type]
    assert torch.equal(record["first_success"] >= 0, lost)
    torch.testing.assert_close(record["loss"], torch.stack(margins).amax(0), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(margin(net(found), y), record["loss"], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.5), ("l1", 1.5)])
def test_at_full_length_apgd_is_as_strong_as_the_authors(
    loaded: LoadedModel, digits_test: ImageData, norm: str, eps: float
) -> None:
    net, x, y = loaded.model, to_float(digits_test.images)[:200], digits_test.labels[:200]
    with torch.no_grad():
        clean_wrong = net(x).argmax(1) != y
    for loss in ("ce", "dlr-targeted"):
        record: dict[str, Tensor] = {}
        apgd(net, x, y, eps=eps, norm=norm, loss=loss, mode="evaluate", record=record)
        lost = (record["first_success"] >= 0) | clean_wrong
        options = {
            "n_iter": 100,
            "norm": REFERENCE[norm],
            "eps": eps,
            "use_largereps": norm == "l1",
        }
        theirs = APGDAttack(net, **options) if loss == "ce" else APGDAttack_targeted(net, **options)
        with torch.no_grad():
            lost_there = net(theirs.perturb(x, y)).argmax(1) != y
        assert abs(int(lost.sum()) - int(lost_there.sum())) <= (10 if norm == "l1" else 3)


# --- closed forms ----------------------------------------------------------------------------


def test_optimum_on_a_linear_model() -> None:
    """linf and l2: along the other row minus one's own. l1: all on the pixels that count most."""
    model, weight = linear()
    x, y = images(low=0.2, high=0.8), torch.arange(12) % 2
    direction = (weight[1 - y] - weight[y]).view_as(x)
    unit = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for loss in ("ce", "margin", "dlr-targeted"):  # of two classes: z_t - z_y
        found = apgd(model, x, y, eps=0.05, loss=loss)
        torch.testing.assert_close(found, x + 0.05 * direction.sign(), atol=1e-6, rtol=0)
        found = apgd(model, x, y, eps=0.5, norm="l2", loss=loss)
        torch.testing.assert_close(found, x + 0.5 * unit, atol=3e-4, rtol=0)
        found = apgd(model, x, y, eps=3.0, norm="l1", loss=loss)
        gain = (direction * (found - x)).flatten(1).sum(1)
        torch.testing.assert_close(gain, best_l1_gain(direction, x, 3.0), rtol=0.02, atol=0)
        assert (gain <= best_l1_gain(direction, x, 3.0) * (1 + 1e-5)).all()


def best_l1_gain(direction: Tensor, x: Tensor, eps: float) -> Tensor:
    """eps spent on the pixels of the largest weights, each up to the box: a fractional knapsack."""
    weight, order = direction.flatten(1).abs().sort(1, descending=True)
    room = torch.where(direction > 0, 1 - x, x).flatten(1).gather(1, order)
    spent = torch.minimum(room, (eps - (room.cumsum(1) - room)).clamp(min=0))
    return (weight * spent).sum(1)


def test_any_objective_can_be_climbed() -> None:
    """Without labels nothing is ever reached; the nearest point to a goal is found."""
    x, goal = images(low=0.3, high=0.7), images().flip(0)

    def objective(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        distance = (z - goal[rows]).flatten(1).square().sum(1)
        return -distance, torch.zeros(len(z), dtype=torch.bool)

    for mode in ("represent", "evaluate"):
        record: dict[str, Tensor] = {}
        found = auto_ascend(objective, x, eps=0.2, norm="linf", steps=60, mode=mode, record=record)
        wanted = torch.maximum(torch.minimum(goal, x + 0.2), x - 0.2)
        torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
        torch.testing.assert_close(record["loss"], objective(found, torch.arange(12))[0])
        assert (record["first_success"] == -1).all()


# --- the modes -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
def test_images_that_leave_change_nothing_for_the_others(
    net: nn.Module, norm: str, loss: str
) -> None:
    x = images(40)
    y = labels(net, x)
    options = {
        "eps": EPS[norm] * 0.8,
        "norm": norm,
        "steps": 9,
        "loss": loss,
        "restarts": 2,
        "targets": 2,
    }
    full: dict[str, Tensor] = {}
    strongest = apgd(net, x, y, record=full, **options)  # type: ignore[arg-type]
    assert ((strongest - x).flatten(1).abs().amax(1) > 0).all()
    verdict: dict[str, Tensor] = {}
    found = apgd(net, x, y, mode="evaluate", record=verdict, **options)  # type: ignore[arg-type]
    fooled = full["first_success"] >= 0
    assert 3 < fooled.sum() < 37
    assert torch.equal(verdict["first_success"] >= 0, fooled)
    assert torch.equal(labels(net, found) != y, fooled)
    # Of those never fooled all runs were made, and the strongest iterate is the result.
    torch.testing.assert_close(found[~fooled], strongest[~fooled], atol=1e-5, rtol=0)
    of = losses if loss == "ce" else margins
    torch.testing.assert_close(of(net, found, y), verdict["loss"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(of(net, strongest, y), full["loss"], atol=1e-4, rtol=1e-4)
    again = apgd(net, x, y, mode="last", **options)  # type: ignore[arg-type]
    assert torch.equal(again, found)


def margins(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return margin(net(x), y)


def test_cost(net: nn.Module) -> None:
    x = images(40)
    y = labels(net, x)
    counter = Counter(net)
    apgd(counter, x, y, steps=9, restarts=2)
    assert counter.forwards == 20
    assert counter.images == 20 * 40
    record: dict[str, Tensor] = {}
    counter = Counter(net)
    apgd(counter, x, y, eps=0.02, steps=9, mode="evaluate", record=record)
    first = record["first_success"]
    assert counter.images == int(torch.where(first < 0, 10, first + 1).sum())
    counter = Counter(net)
    apgd(counter, x, y, eps=0.1, norm="l1", steps=10, restarts=2)  # 3 balls have 3 starts
    assert counter.forwards == 2 * 13
    counter = Counter(net)  # the clean logits, and of each run the margin of its result
    apgd(counter, x, y, eps=1e-4, steps=5, loss="dlr-targeted", targets=2, mode="evaluate")
    assert counter.forwards == 1 + 2 * (6 + 1)
    counter = Counter(net)
    apgd(counter, x, (y + 1) % CLASSES, eps=1e-6, steps=5, restarts=3, mode="evaluate")
    assert counter.forwards == 1


@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_restarts_only_ever_help(net: nn.Module, mode: str) -> None:
    x = images(40)
    y = labels(net, x)
    for loss in ("ce", "dlr-targeted"):
        fooled, best = torch.zeros(40, dtype=torch.bool), torch.full((40,), -torch.inf)
        for restarts in (1, 3):
            record: dict[str, Tensor] = {}
            apgd(net, x, y, eps=0.012, steps=3, restarts=restarts, loss=loss, targets=2, mode=mode,
                 record=record)  # fmt: skip
            now = record["first_success"] >= 0
            assert not (fooled & ~now).any()
            if mode == "represent":
                assert (record["loss"] >= best).all()
                assert (record["loss"] > best).any()
            fooled, best = now, record["loss"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_attack_of_a_batch_is_the_attack_of_its_parts(net: nn.Module, mode: str, norm: str) -> None:
    x, ids = images(), torch.arange(12) * 17 - 5
    y = labels(net, x)

    def attacked(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        record: dict[str, Tensor] = {}
        found = apgd(
            net, x[rows], y[rows], eps=EPS[norm] * 0.7, norm=norm, steps=6, restarts=1,
            loss="dlr-targeted", targets=2, mode=mode, seed=1, ids=ids[rows], record=record,
        )  # fmt: skip
        return found, record["loss"], record["first_success"]

    whole = attacked(torch.arange(12))
    for split in (torch.arange(12).split(5), torch.tensor([7, 0, 3]).split(1)):
        parts = [torch.cat(part) for part in zip(*map(attacked, split), strict=True)]
        order = torch.cat(split)
        assert images_that_differ(parts[0], whole[0][order], 1e-4) <= 1
        torch.testing.assert_close(parts[1], whole[1][order], atol=1e-3, rtol=1e-3)
        assert torch.equal(parts[2], whole[2][order])


# --- never outside, whatever comes -----------------------------------------------------------


class Widen(nn.Module):
    """A float32 network for images of any dtype."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.float())


@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    eps=st.floats(0, 1) | st.sampled_from([0.0, 1e-8, 1e-5, 8 / 255]),
    batch=st.integers(0, 3),
    side=st.integers(4, 9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    last=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["represent", "evaluate", "last"]),
            "loss": st.sampled_from(["ce", "dlr", "margin", "kl", "dlr-targeted"]),
            "steps": st.integers(1, 6),
            "seed": st.integers(0, 9),
            "large_radius": st.booleans(),
        }
    ),
)
@settings(max_examples=30, deadline=None)
def test_never_outside_the_ball_or_the_box(
    norm: str, eps: float, batch: int, side: int, dtype: torch.dtype, last: bool,
    options: dict[str, object],
) -> None:  # fmt: skip
    x = torch.rand(batch, 3, side, 6, generator=torch.Generator().manual_seed(side)) * 1.5 - 0.25
    x = x.clamp(0, 1).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    eps = eps if norm == "linf" else eps * 12
    y = torch.arange(batch) % CLASSES
    record: dict[str, Tensor] = {}
    found = apgd(
        Widen(ConvNet()),
        x,
        y,
        eps=eps,
        norm=norm,
        targets=2,
        record=record,
        **options,  # type: ignore[arg-type]
    )
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert not found.requires_grad
    assert not last or found.is_contiguous(memory_format=torch.channels_last)
    assert record["loss"].shape == record["first_success"].shape == (batch,)
    assert record["loss"].dtype == torch.float32
    if eps == 0 or batch == 0:
        assert torch.equal(found, x)
        return
    assert found.min() >= 0
    assert found.max() <= 1
    delta = (found.double() - x.double()).flatten(1)
    ulp = torch.finfo(dtype).eps / 2 if dtype != torch.float64 else 2.0**-24
    if norm == "linf":
        assert delta.abs().max() <= eps + ulp
    elif norm == "l2":
        assert delta.norm(dim=1).max() <= eps * (1 + 2 * ulp) + ulp * math.sqrt(delta.shape[1])
    else:
        assert delta.abs().sum(1).max() <= eps * (1 + 2.0**-23)


@pytest.mark.parametrize("train_mode", [False, True])
def test_the_network_and_the_images_are_left_alone(train_mode: bool) -> None:
    model = batch_norm_net()
    before = state(model)
    x = images().requires_grad_(True)
    kept = x.detach().clone()
    with torch.no_grad():
        apgd(model, x, torch.zeros(12, dtype=torch.int64), steps=3, train_mode=train_mode)
    after = state(model)
    assert_same(after[:4], before[:4])
    if not train_mode:
        assert_same(after, before)
    assert torch.equal(x, kept)
    assert x.grad is None


@pytest.mark.parametrize("mode", ["represent", "evaluate"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_a_broken_gradient_is_not_robustness(mode: str, norm: str, steps: int) -> None:
    model, x = Root(), images()
    y = labels(model, x)
    with pytest.raises(UserError, match="finite loss and gradient"):
        apgd(model, x, y, norm=norm, steps=steps, mode=mode)


class BreaksOnce(nn.Module):
    """A network that gives NaN at one forward in the middle."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.model, self.at, self.calls = model, at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x) * (torch.nan if self.calls == self.at else 1)


@pytest.mark.parametrize("at", [1, 2, 4, 6])
@pytest.mark.parametrize("mode", ["represent", "evaluate"])
def test_one_broken_loss_is_noticed(net: nn.Module, mode: str, at: int) -> None:
    x = images()
    with pytest.raises(UserError, match="finite loss and gradient"):
        apgd(BreaksOnce(net, at), x, labels(net, x), eps=0.001, steps=5, mode=mode)


class Doubtful(nn.Module):
    """Adds what a random draw says to the logits; the mean gradient is that of the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x) + (1 if self.calls % 2 else -1) * 3 * x.mean((1, 2, 3))[:, None]


def test_expectation_over_draws(net: nn.Module) -> None:
    x = images()
    y = labels(net, x)
    noisy = Doubtful(net)
    found = apgd(noisy, x, y, eps=0.01, steps=4, eot=2, loss="margin")
    assert noisy.calls == 2 * 5
    close = apgd(net, x, y, eps=0.01, steps=4, loss="margin")
    assert ((found - close).abs() > 1e-5).double().mean() < 0.02


def test_draws_are_keyed(net: nn.Module) -> None:
    x = images()
    y = labels(net, x)
    first = apgd(net, x, y, steps=2)
    assert torch.equal(apgd(net, x, y, steps=2, ids=torch.arange(12)), first)
    assert not torch.equal(apgd(net, x, y, steps=2, seed=1), first)
    assert not torch.equal(apgd(net, x, y, steps=2, ids=torch.arange(12) + 100), first)


# --- what cannot be meant --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "at least 1; got 0"),
        ({"restarts": 0}, "at least 1"),
        ({"eot": 0}, "at least 1"),
        ({"targets": 0}, "targets expects at least 1"),
        ({"rho": 1.5}, "rho expects a share"),
        ({"rho": math.nan}, "rho expects a share"),
        ({"mode": "best"}, "represent, evaluate, last; got 'best'"),
        ({"norm": "l0"}, "norm expects one of linf, l2, l1"),
        ({"eps": 8}, "try 8/255"),
        ({"loss": "mse"}, "loss expects one of"),
    ],
)
def test_settings_that_cannot_be_meant(
    wrong: dict[str, object], message: str, net: nn.Module
) -> None:
    with pytest.raises(UserError, match=message):
        apgd(net, images(), torch.zeros(12, dtype=torch.int64), **wrong)  # type: ignore[arg-type]


def test_inputs_that_cannot_be_meant(net: nn.Module) -> None:
    y = torch.zeros(12, dtype=torch.int64)
    for loss in ("ce", "dlr-targeted"):
        with pytest.raises(UserError, match="pixels in"):
            apgd(net, images() * 255, y, loss=loss)
        with pytest.raises(UserError, match="classes 0 to 4"):
            apgd(net, images(), y + CLASSES, loss=loss)
        with pytest.raises(UserError, match="logits of shape"):
            apgd(nn.Identity(), images(), y, loss=loss)
    with pytest.raises(UserError, match="at least 2 classes"):
        apgd(linear(1)[0], images(), y, loss="dlr-targeted")


def test_targets_are_as_many_as_there_are_classes() -> None:
    for classes in (2, 3, 4):
        model, _ = linear(classes)
        counter = Counter(model)
        y = labels(model, images())
        apgd(counter, images(), y, eps=1e-4, steps=2, loss="dlr-targeted", mode="evaluate")
        assert counter.forwards == 1 + (classes - 1) * (3 + 1)
        targeted = Targeted(model, y, (y + 1) % classes)
        loss, fooled = targeted(images(), torch.arange(12))
        logits = model(images())
        raw = logits.gather(1, ((y + 1) % classes)[:, None]) - logits.gather(1, y[:, None])
        assert not fooled.any()
        assert torch.equal(loss, raw[:, 0]) == (classes < 4)
