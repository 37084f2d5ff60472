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
        torch.mm(rows, rows.T, out=out)
        return
    _by_halves(rows[:half], out[:half, :half], block)
    torch.mm(rows[:half], rows[half:].T, out=out[:half, half:])
    _by_halves(rows[half:], out[half:, half:], block)
