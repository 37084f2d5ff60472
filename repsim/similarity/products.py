"""Inner products of the samples of a batch, as soon as a layer's output is there."""

from __future__ import annotations

import torch
from torch import Tensor

from repsim.similarity.halves import half_product, mirrored

# Columns that are centred at once: a piece of 256 rows stays in the processor's cache, so that
# centring costs no second trip to memory.
_COLUMNS = 8192
_COLUMNS_CUDA = 1 << 17


def rounding(dtype: torch.dtype) -> float:
    """The spread, as a part of the mean, up to which rows count as equal: 8 units of rounding.

    A network's arithmetic leaves so much of equal inputs. Half precision is held to float32, in
    which it is computed: its own unit would take a layer with one huge feature for constant.
    """
    return 8 * min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


@torch.no_grad()
def sample_products(output: Tensor) -> Tensor:
    """Xc·Xcᵀ of a layer's output, Xc its rows with their mean subtracted; (m, m) float32.

    Columns are centred before they are multiplied, and the products of the pieces are added up in
    float64: its errors are some 1e-7 of the largest entry, whatever offset the activations have.

    Args:
        output: (m, ...) floating point in any memory layout; a product does not depend on the
            order of the features, so none is copied into another order.

    Returns:
        Zeros where all rows are equal, up to `rounding`.
    """
    rows = _rows(output)
    count, width = rows.shape
    step = _COLUMNS if rows.device.type == "cpu" else _COLUMNS_CUDA
    total = torch.zeros(count, count, dtype=torch.float64, device=rows.device)
    room = torch.empty(count * min(step, width), device=rows.device)
    part = torch.zeros(count, count, device=rows.device)
    level = torch.zeros((), dtype=torch.float64, device=rows.device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for start in range(0, width, step):
            piece = rows[:, start : start + step]
            mean = piece.mean(0, dtype=torch.promote_types(piece.dtype, torch.float32))
            level += mean.double().square().sum()
            centred = room[: piece.numel()].view(piece.shape)
            if piece.dtype == torch.float64:  # centred before it is rounded
                centred.copy_(piece - mean)
            else:
                torch.sub(piece, mean, out=centred)
            half_product(centred, part)
            total += part
    finally:
        torch.set_float32_matmul_precision(before)
    total = mirrored(total)
    means = total.mean(1)  # what the mean's own rounding has left
    total -= means[:, None] + means - means.mean()
    total *= total.diagonal().mean() > rounding(rows.dtype) ** 2 * level
    return total.float()


def _rows(output: Tensor) -> Tensor:
    """(m, features) in the order in which they lie in memory."""
    if output.ndim == 1:
        return output[:, None]
    if output.is_contiguous():
        return output.flatten(1)
    order = sorted(range(1, output.ndim), key=lambda axis: -output.stride()[axis])
    return output.permute(0, *order).flatten(1)
