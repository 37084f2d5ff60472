"""Inference over random transformations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repsim.attacks import pgd
from repsim.models import Smoothed

X = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """Remembers what it saw; its logits are the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.mean((2, 3)) * 20


def test_it_is_the_log_of_the_mean_probability() -> None:
    keeps = Keeps()
    smoothed = Smoothed(keeps, draws=7, seed=1)
    found = smoothed(X)
    views = keeps.seen[0]
    assert views.shape == (35, 3, 16, 16)
    assert views.min() >= 0
    assert views.max() <= 1
    wanted = keeps(views).softmax(1).view(7, 5, 3).mean(0)
    torch.testing.assert_close(found.exp(), wanted)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5))


def test_every_forward_draws_anew_and_the_seed_repeats_it() -> None:
    first = [Smoothed(Keeps(), seed=3)(X) for _ in range(2)]
    assert torch.equal(*first)
    smoothed = Smoothed(Keeps(), seed=3)
    assert torch.equal(smoothed(X), first[0])
    assert not torch.equal(smoothed(X), first[0])
    assert not torch.equal(Smoothed(Keeps(), seed=4)(X), first[0])


def test_the_mean_comes_nearer_to_the_expectation_with_more_draws() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    wanted = Smoothed(net, draws=3000, seed=9)(X).exp()
    errors = []
    for draws in (5, 500):
        runs = [Smoothed(net, draws=draws, seed=s)(X).exp() - wanted for s in range(6)]
        errors.append(torch.stack(runs).pow(2).mean().sqrt().item())
    assert errors[1] < 3 * errors[0] / math.sqrt(100)


def test_transformations_are_crops_mirrors_and_light() -> None:
    """A ramp stays monotone in a crop; it falls in a mirror image; the area is 50% to 100%."""
    ramp = torch.linspace(0.3, 0.7, 64).expand(200, 1, 64, 64).contiguous()
    keeps = Keeps()
    Smoothed(keeps, draws=1)(ramp)
    views = keeps.seen[0]
    slope = (views[..., 48] - views[..., 16]).mean((1, 2))
    assert 60 < int((slope > 0).sum()) < 140
    spans = slope.abs() / (0.4 * 32 / 63)  # side of the crop times contrast times brightness
    assert spans.min() > 0.8 * 0.8 * math.sqrt(0.5) * 0.98
    assert spans.max() < 1.2 * 1.2 * 1.02
    keeps = Keeps()
    Smoothed(keeps, draws=1, mirror=False)(ramp)
    assert ((keeps.seen[0][..., 48] - keeps.seen[0][..., 16]).mean((1, 2)) > 0).all()


def test_an_attack_goes_through_the_transformations() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    labels = net(X).argmax(1)
    attacked = pgd(Smoothed(net, draws=8), X, labels, eps=0.05, steps=5)
    before, after = (
        -Smoothed(net, draws=400, seed=5)(x)[torch.arange(5), labels] for x in (X, attacked)
    )
    assert (after > before + 0.02).all()
