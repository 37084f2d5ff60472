"""Inner products of rows with themselves: half of the work, as the other half is the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEAF = 64  # rows whose square is not worth being halved


def half_product(rows: Tensor, out: Tensor, block: int = 1) -> None:
    """Write rows·rowsᵀ into `out`, at least its blocks on and above the diagonal.

    Args:
        rows: (m, k).
        out: (m, m), of the same type and device.
        block: side of the blocks.
    """
    if rows.device.type == "cpu" and torch.get_num_threads() == 1:
        # numpy hands A·Aᵀ to syrk; torch has no call for it.
        np.matmul(rows.numpy(), rows.numpy().T, out=out.numpy())
    else:  # numpy's threads would wait for torch's and the other way round
        _by_levels(rows, out, block)


def self_product(rows: Tensor) -> Tensor:
    """The whole of rows·rowsᵀ, (m, m), exactly symmetric."""
    out = rows.new_empty(len(rows), len(rows))
    half_product(rows, out)
    return mirrored(out)


def mirrored(half: Tensor) -> Tensor:
    """(m, m) with what stands above the diagonal below it too."""
    return half.triu() + half.triu(1).T


def _by_levels(rows: Tensor, out: Tensor, block: int) -> None:
    """Squares on the diagonal; then what is right of them, in squares of twice the side a level.

    The products of a level are independent, and each thread makes whole ones: a product of few
    rows that the threads share runs at half to three quarters of their speed.
    """
    count, blocks = 1, len(rows) // block
    while blocks * block > LEAF and blocks > 1:
        count, blocks = 2 * count, blocks // 2
    side = blocks * block
    whole = count * side
    if whole < len(rows):
        _product(rows, rows[whole:], out[:, whole:])
    if not whole:
        return
    rows, out = rows[:whole], out[:whole, :whole]
    left = rows.unflatten(0, (count, side))
    places = out.unflatten(1, (count, side)).unflatten(0, (count, side))
    _products(left, left, places.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
    while count > 1:
        count //= 2
        pairs = rows.unflatten(0, (count, 2, side))
        places = out.unflatten(1, (count, 2, side)).unflatten(0, (count, 2, side))
        right = places[:, 0, :, :, 1].diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        _products(pairs[:, 0], pairs[:, 1], right)
        side *= 2


def _threads(rows: Tensor) -> int:
    return torch.get_num_threads() if rows.device.type == "cpu" else 1


def _products(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a[i]·b[i]ᵀ into out[i], of a, b (count, side, k) and out (count, side, side)."""
    if len(a) % _threads(a) == 0:
        out.copy_(torch.bmm(a, b.mT))
    else:
        for left, right, place in zip(a, b, out, strict=True):
            _product(left, right, place)


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Write a·bᵀ into out; each thread multiplies columns of its own."""
    parts = _threads(a)
    width = a.shape[1] // parts
    if parts == 1 or width < LEAF:
        torch.mm(a, b.T, out=out)
        return
    whole = width * parts
    x, y = (r[:, :whole].unflatten(1, (parts, width)).transpose(0, 1) for r in (a, b))
    torch.sum(torch.bmm(x, y.mT), 0, out=out)
    if whole < a.shape[1]:
        out.addmm_(a[:, whole:], b[:, whole:].T)
