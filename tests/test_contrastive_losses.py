"""NT-Xent and SupCon: naive loops in float64, another library, limits, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor

from repsim.contrastive_losses import nt_xent, sup_con
from repsim.errors import UserError


def views(batch: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    return first, first + torch.randn(batch, dim, generator=generator, dtype=torch.float64)


def naive(first: Tensor, second: Tensor, labels: list[int], temperature: float) -> list[float]:
    """SupCon view by view as it is written down; NT-Xent where every image is its own class."""
    count = len(first)
    rows = [(row / row.norm()).tolist() for row in torch.cat([first, second])]
    both = labels * 2
    losses = [0.0] * count
    for i, one in enumerate(rows):
        others = [k for k in range(2 * count) if k != i]
        s = {k: sum(a * b for a, b in zip(one, rows[k], strict=True)) / temperature for k in others}
        total = sum(math.exp(s[k]) for k in others)
        positives = [k for k in others if both[k] == both[i]]
        terms = [-math.log(math.exp(s[p]) / total) for p in positives]
        losses[i % count] += sum(terms) / len(positives) / 2
    return losses


@given(
    st.integers(1, 7), st.integers(1, 5), st.sampled_from([0.1, 0.5, 2.0]), st.integers(0, 99),
    st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_naive_loops(batch: int, dim: int, temperature: float, seed: int, classes: int) -> None:
    first, second = views(batch, dim, seed)
    wanted = torch.tensor(naive(first, second, list(range(batch)), temperature)).double()
    found = nt_xent(first, second, temperature)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted.to(found), atol=1e-6, rtol=1e-6)
    labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    wanted = torch.tensor(naive(first, second, labels.tolist(), temperature)).double()
    found = sup_con(first, second, labels, temperature)
    torch.testing.assert_close(found, wanted.to(found), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_pytorch_metric_learning(temperature: float) -> None:
    first, second = (view.float() for view in views(20, 16))
    both, own = torch.cat([first, second]), torch.arange(20).repeat(2)
    torch.testing.assert_close(
        nt_xent(first, second, temperature).mean(), NTXentLoss(temperature)(both, own)
    )
    labels = torch.arange(20) % 6
    torch.testing.assert_close(
        sup_con(first, second, labels, temperature).mean(),
        SupConLoss(temperature)(both, labels.repeat(2)),
    )


def test_limits() -> None:
    first, second = views(6, 4)
    # Every image a class of its own is NT-Xent; the two views can change places.
    own = torch.arange(6)
    torch.testing.assert_close(sup_con(first, second, own, 0.3), nt_xent(first, second, 0.3))
    torch.testing.assert_close(nt_xent(second, first, 0.3), nt_xent(first, second, 0.3))
    # Lengths mean nothing.
    torch.testing.assert_close(nt_xent(first * 1e-3, second * 1e3), nt_xent(first, second))
    # The order of the images means nothing.
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(nt_xent(first[order], second[order]), nt_xent(first, second)[order])
    # All views alike: each of the 2N - 1 is as likely.
    same = torch.ones(6, 4)
    torch.testing.assert_close(nt_xent(same, same), torch.full((6,), math.log(11)))
    # One image has no negatives; no image has no loss.
    assert nt_xent(first[:1], second[:1]).abs().item() < 1e-12
    assert nt_xent(first[:0], second[:0]).shape == (0,)
    assert sup_con(first[:0], second[:0], own[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stable(dtype: torch.dtype) -> None:
    """exp(1/0.001) is no float; opposite views have a loss of about 2/τ."""
    first = torch.eye(4).to(dtype).requires_grad_(True)
    loss = nt_xent(first, -first, 0.001)
    assert loss.dtype == torch.float32
    # A view's cosine to its positive is -1, to all others 0: the loss is 1/τ + log 6.
    torch.testing.assert_close(loss, torch.full((4,), 1000 + math.log(6)))
    loss.sum().backward()
    assert first.grad is not None
    assert first.grad.isfinite().all()
    zero = torch.zeros(4, 3, requires_grad=True)
    nt_xent(zero, zero).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_gradients() -> None:
    first, second = (view.requires_grad_(True) for view in views(5, 3))
    labels = torch.tensor([0, 1, 0, 2, 1])
    torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.4), (first, second))
    torch.autograd.gradcheck(lambda a, b: sup_con(a, b, labels, 0.4), (first, second))


def test_autocast_does_not_round_cosines() -> None:
    first, second = (view.float() for view in views(20, 16))
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(first, second, 0.05)
    torch.testing.assert_close(found, nt_xent(first, second, 0.05))


def test_what_cannot_be_meant() -> None:
    first, second = views(5, 3)
    with pytest.raises(UserError, match="same shape"):
        nt_xent(first, second[:4])
    with pytest.raises(UserError, match="same shape"):
        nt_xent(first[:, :, None], second[:, :, None])
    with pytest.raises(UserError, match="above 0; got 0"):
        nt_xent(first, second, 0.0)
    with pytest.raises(UserError, match=r"one an image, \(5,\); got \(4,\)"):
        sup_con(first, second, torch.arange(4))
