"""FAB: the published implementation image by image, closed forms, what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pyautoattack import fab_pt
from test_attacks import CLASSES, ConvNet, Counter, images, labels
from torch import Tensor, nn

from repsim.attacks.ball import perturbation_norm
from repsim.attacks.fab import _random_start, fab
from repsim.attacks.minimum import Search
from repsim.errors import UserError

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.02, "l2": 0.2, "l1": 1.2}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return ConvNet().eval()


def published(net: nn.Module, norm: str, **settings: Any) -> Any:
    return fab_pt.FABAttack_PT(net, norm=NORMS[norm], device="cpu", **settings)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("steps", [1, 2, 15])
def test_represent_is_the_published_run(
    net: nn.Module, norm: str, targets: int, steps: int
) -> None:
    """Step by step: a run of k steps ends with the best of the first k iterates."""
    x = images(24)
    y = labels(net, x)
    y[:3] = (y[:3] + 1) % CLASSES  # misclassified: stay
    reference = published(net, norm, n_iter=steps, eps=EPS[norm], targeted=targets > 0)
    reference.target_class = 2
    wanted = reference.attack_single_run(x, y, is_targeted=targets > 0)
    found = fab(net, x, y, eps=EPS[norm], norm=norm, steps=steps, targets=targets)
    assert torch.equal(found[:3], x[:3])
    # Both round differently; where an iterate lies on the boundary they part, which is rare.
    close = (found - wanted).flatten(1).abs().amax(1) < 1e-4
    assert close.double().mean() > 0.95
    sizes, others = (perturbation_norm(v - x, norm) for v in (found, wanted))
    torch.testing.assert_close(sizes, others, atol=1e-5, rtol=0.02)
    if steps > 1:
        assert (sizes > 0).sum() > 12


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [0, 3])
def test_evaluate_gives_the_published_verdict(net: nn.Module, norm: str, targets: int) -> None:
    x = images(60)
    y = labels(net, x)
    y[0] = (y[0] + 1) % CLASSES
    reference = published(
        net, norm, n_iter=12, eps=EPS[norm], targeted=targets > 0,
        n_target_classes=min(targets, CLASSES - 1),
    )  # fmt: skip
    lost = labels(net, reference.perturb(x, y)) != y
    record: dict[str, Tensor] = {}
    found = fab(
        net, x, y, eps=EPS[norm], norm=norm, steps=12, targets=targets, mode="evaluate",
        record=record,
    )  # fmt: skip
    assert torch.equal(labels(net, found) != y, lost)
    assert torch.equal(record["first_success"] >= 0, lost)
    assert 5 < lost.sum() < 55
    sizes = perturbation_norm(found - x, norm)
    assert sizes.max() <= EPS[norm]
    assert torch.equal(sizes > 0, record["first_success"] > 0)  # the others are as they were
    assert torch.equal(fab(net, x, y, eps=EPS[norm], norm=norm, steps=12, targets=targets,
                           mode="last"), found)  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_represent_finds_the_smallest_of_all_runs(net: nn.Module, norm: str) -> None:
    """Of every target and restart, and beyond eps as well."""
    x = images(20)
    y = labels(net, x)
    how: dict[str, Any] = {"norm": norm, "steps": 6, "eps": EPS[norm] / 3}
    sizes = torch.full((20,), torch.inf)
    for targets in (1, 2, 4):
        found = fab(net, x, y, targets=targets, record=(record := {}), **how)
        now = perturbation_norm(found - x, norm)
        now[now == 0] = torch.inf
        assert (now <= sizes).all()
        sizes = now
        assert torch.equal(labels(net, found) != y, now < torch.inf)
        # No success counts beyond eps.
        assert ((record["first_success"] >= 0) == (now <= how["eps"])).all()
    assert (sizes > how["eps"]).sum() > 5
    assert (sizes < torch.inf).all()


class Waves(nn.Module):
    """Boundaries all around, so that where one starts matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.weight = torch.randn(192, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * x.flatten(1) @ self.weight) + torch.cos(x.flatten(1) @ self.weight)


@pytest.mark.parametrize(("norm", "steps"), [("linf", 20), ("l2", 3), ("l1", 3)])
def test_restarts_only_ever_help(norm: str, steps: int) -> None:
    net, x = Waves(), images(20)
    y = labels(net, x)
    how: dict[str, Any] = {"norm": norm, "steps": steps, "eps": EPS[norm]}
    all_sizes, lost = [], -1
    for restarts in (1, 3, 6):
        found = fab(net, x, y, restarts=restarts, **how)
        sizes = perturbation_norm(found - x, norm)
        all_sizes.append(torch.where(sizes == 0, torch.inf, sizes))
        verdict = fab(net, x, y, restarts=restarts, mode="evaluate", **how)
        assert int((labels(net, verdict) != y).sum()) >= lost
        lost = int((labels(net, verdict) != y).sum())
    one, three, six = all_sizes
    assert (six <= three).all()
    assert (three <= one).all()
    assert (six < one).any()
    assert not torch.equal(fab(net, x, y, restarts=6, seed=1, **how), found)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_half_as_far_as_is_of_interest(net: nn.Module, norm: str) -> None:
    x = torch.full((6, 3, 8, 8), 0.5)
    x[5] = 0
    search = Search(net, x, labels(net, x), 0.4, norm, "represent")
    rows = torch.tensor([4, 1, 2, 5])
    search.distance[4] = 0.1  # found: nearer than eps
    ids = torch.tensor([0, 7, 7, 3, 4, 5])
    start = _random_start(search, rows, ids, 0, 1)
    sizes = perturbation_norm(start - search.clean[rows], norm)
    torch.testing.assert_close(sizes[:3], torch.tensor([0.05, 0.2, 0.2]))
    assert 0 < sizes[3] <= 0.2
    assert start.min() >= 0
    assert torch.equal(start[1], start[2])  # the same id
    assert not torch.equal(start[1], _random_start(search, rows, ids, 0, 2)[1])
    assert not torch.equal(start[1], _random_start(search, rows, ids, 1, 1)[1])
    spread = (start[1] - 0.5) / (start[1] - 0.5).abs().max()
    kurtosis = spread.pow(4).mean() / spread.square().mean() ** 2
    assert 1.5 < kurtosis < 2.1 if norm == "linf" else 2.3 < kurtosis < 4  # uniform: 1.8; normal: 3
    search.eps = None
    sizes = perturbation_norm(_random_start(search, rows, ids, 0, 1) - search.clean[rows], norm)
    limit = {"linf": 0.3, "l2": 1.0, "l1": 5.0}[norm]
    torch.testing.assert_close(sizes[:2], torch.tensor([0.05, limit / 2]))


def test_without_a_bound_any_adversarial_point_is_a_success(net: nn.Module) -> None:
    x = images(20)
    y = labels(net, x)
    record: dict[str, Tensor] = {}
    found = fab(net, x, y, eps=None, steps=10, restarts=2, record=record)
    assert (record["first_success"] > 0).all()
    first = fab(net, x, y, eps=None, steps=10, mode="evaluate")
    assert (labels(net, first) != y).all()
    sizes, firsts = (perturbation_norm(v - x, "linf") for v in (found, first))
    assert (sizes <= firsts).all()
    assert (sizes < firsts).any()


# --- cost ------------------------------------------------------------------------------------


class Backwards(Counter):
    """Counts the images that go back through a network as well."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.back = 0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, gradient: Tensor) -> None:
        self.back += len(gradient)


class Never(nn.Module):
    """One class, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        rise = torch.arange(3) * x.flatten(1).mean(1, keepdim=True)
        return rise - torch.tensor([0.0, 9.0, 9.0])


@pytest.mark.parametrize("targets", [0, 2])
def test_an_image_that_withstands_costs_one_forward_and_backward_a_step(targets: int) -> None:
    x, y = images(5), torch.zeros(5, dtype=torch.int64)
    counter = Backwards(Never())
    found = fab(counter, x, y, steps=7, targets=targets, mode="evaluate")
    assert torch.equal(found, x)
    runs = max(targets, 1)
    # Of the clean images for their class, of the start of each run, and after each step.
    assert counter.images == 5 * (1 + runs * (1 + 7))
    assert counter.back == 5 * 7 * 2  # two runs to one class each, or one run to two


def test_an_image_that_crosses_costs_one_forward_more(net: nn.Module) -> None:
    x = images(30)
    counter = Backwards(net)
    fab(counter, x, labels(net, x), eps=1e-6, steps=20, targets=1)
    assert counter.images < 30 * (2 + 2.15 * 20)
    assert counter.back < 30 * 1.15 * 20


def test_evaluate_runs_only_what_is_not_fooled_yet(net: nn.Module) -> None:
    x = images(30)
    counter = Counter(net)
    fab(counter, x, labels(net, x), eps=1.0, steps=50, targets=4, mode="evaluate")
    assert counter.images < 30 * 8
    counter = Counter(net)
    fab(counter, x, (labels(net, x) + 1) % CLASSES, mode="evaluate")
    assert counter.images == 30  # all are misclassified


# --- what cannot be meant --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "at least 1 and targets at least 0; got 0"),
        ({"restarts": 0}, "at least 1"),
        ({"targets": -1}, "at least 0"),
        ({"alpha_max": 1.5}, r"\[0, 1\]"),
        ({"beta": -0.1}, r"\[0, 1\]"),
        ({"beta": float("nan")}, r"\[0, 1\]"),
        ({"eta": 0.9}, "eta at least 1"),
        ({"eta": float("inf")}, "eta at least 1"),
    ],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, Any], message: str, net: nn.Module) -> None:
    with pytest.raises(UserError, match=message):
        fab(net, images(), torch.zeros(12, dtype=torch.int64), **wrong)


def test_more_targets_than_wrong_classes_are_all_of_them(net: nn.Module) -> None:
    x = images(8)
    y = labels(net, x)
    assert torch.equal(fab(net, x, y, steps=4, targets=99), fab(net, x, y, steps=4, targets=4))
