"""Contrastive losses of two views, image by image: pure functions of tensors.

Shapes: views (batch, dim) of the same images in the same order, of any length: they are divided
by their norms here. A loss is (batch,), float32 or float64 as the views are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repsim.errors import UserError


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """-log exp(s(i, j)/τ) / Σ_{k≠i} exp(s(i, k)/τ), s the cosine, averaged over both directions.

    Chen et al. 2020 (SimCLR, arXiv 2002.05709), equation 1: of the 2N views, j is the other view of
    i's image, and the sum has it and the 2N - 2 views of the other images. The paper's loss is the
    mean over the batch. A batch of one image has no negatives: 0.

    Args:
        first: (batch, dim).
        second: (batch, dim).
        temperature: τ > 0.

    Raises:
        UserError: views of other shapes; a temperature that is not above 0.
    """
    similar = _similarities(first, second, temperature)
    count = len(first)
    positive = torch.cat([similar.diagonal(count), similar.diagonal(-count)])
    loss = _log_sum_of_others(similar) - positive
    return loss.view(2, count).mean(0)


def sup_con(first: Tensor, second: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """-1/|P(i)| Σ_{p∈P(i)} log exp(s(i, p)/τ) / Σ_{k≠i} exp(s(i, k)/τ), averaged over both views.

    Khosla et al. 2020 (arXiv 2004.11362), equation 2, L_out: P(i) are all other views of i's class,
    so at least the other view of the same image. The paper's loss is the mean over the batch.

    Args:
        first: (batch, dim).
        second: (batch, dim).
        labels: int64 (batch,).
        temperature: τ > 0.

    Raises:
        UserError: views of other shapes; another number of labels; a temperature not above 0.
    """
    if labels.shape != (len(first),):
        raise UserError(f"labels expect one an image, ({len(first)},); got {tuple(labels.shape)}")
    similar = _similarities(first, second, temperature)
    both = labels.repeat(2)
    same = (both[:, None] == both).fill_diagonal_(False).to(similar.dtype)
    positive = (similar * same).sum(1) / same.sum(1)
    loss = _log_sum_of_others(similar) - positive
    return loss.view(2, len(first)).mean(0)


def _similarities(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cosines of all pairs of the 2N views over τ: (2N, 2N)."""
    if first.dim() != 2 or first.shape != second.shape:
        raise UserError(
            "two views expect the same shape (batch, dim); got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature expects a number above 0; got {temperature!r}")
    views = torch.cat([first, second])
    views = F.normalize(views.to(torch.promote_types(views.dtype, torch.float32)), dim=1)
    with torch.autocast(views.device.type, enabled=False):  # bfloat16 cosines differ by a hundredth
        return views @ views.T / temperature


def _log_sum_of_others(similar: Tensor) -> Tensor:
    """log Σ_{k≠i} exp(s(i, k)/τ): (2N,)."""
    itself = torch.eye(len(similar), dtype=torch.bool, device=similar.device)
    return similar.masked_fill(itself, -torch.inf).logsumexp(1)
