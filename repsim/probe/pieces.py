"""Columns in pieces that stay in the processor's cache, so that a second look at them is free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Of 128 rows 4 MiB: smaller ones pay more for the calls, larger ones for memory.
_COLUMNS = 8192
_COLUMNS_CUDA = 1 << 17


def pieces(width: int, device: torch.device) -> Iterator[slice]:
    """All columns of a matrix, some at a time.

    Args:
        width: number of columns.
        device: where the matrix is.
    """
    step = _COLUMNS if device.type == "cpu" else _COLUMNS_CUDA
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


class Room:
    """Memory that is used again: a fresh piece would be fetched from the system page by page."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def of(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Dense float32 memory of this shape, not initialised; good until the next call."""
        count = math.prod(shape)
        if self._flat.numel() < count or self._flat.device != device:
            self._flat = torch.empty(count, device=device)
        return self._flat[:count].view(*shape)
