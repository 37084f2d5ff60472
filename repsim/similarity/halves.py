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
        _by_halves(rows, out, block)


def self_product(rows: Tensor) -> Tensor:
    """The whole of rows·rowsᵀ, (m, m), exactly symmetric."""
    out = rows.new_empty(len(rows), len(rows))
    half_product(rows, out)
    return mirrored(out)


def mirrored(half: Tensor) -> Tensor:
    """(m, m) with what stands above the diagonal below it too."""
    return half.triu() + half.triu(1).T


def _by_halves(rows: Tensor, out: Tensor, block: int) -> None:
    """Large rectangular products, which run at full speed."""
    half = len(rows) // block // 2 * block
    if len(rows) <= max(block, LEAF) or half == 0:
        _product(rows, rows, out)
        return
    _by_halves(rows[:half], out[:half, :half], block)
    _product(rows[:half], rows[half:], out[:half, half:])
    _by_halves(rows[half:], out[half:, half:], block)


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a·bᵀ: on the CPU each thread multiplies columns of its own.

    A product with few rows and many columns that the threads share out among its rows runs at
    half to three quarters of the speed.
    """
    parts = torch.get_num_threads() if a.device.type == "cpu" else 1
    width = a.shape[1] // parts
    if parts == 1 or width < LEAF:
        torch.mm(a, b.T, out=out)
        return
    whole = width * parts
    x, y = (r[:, :whole].unflatten(1, (parts, width)).transpose(0, 1) for r in (a, b))
    torch.sum(torch.bmm(x, y.mT), 0, out=out)
    if whole < a.shape[1]:
        out.addmm_(a[:, whole:], b[:, whole:].T)
