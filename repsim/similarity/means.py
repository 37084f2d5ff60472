"""Means over cells of a matrix of layers, with the interval of the mean itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.similarity.jackknife import interval

Cells = list[tuple[int, int]]


def same_layer(layers: int) -> Cells:
    """The diagonal."""
    return [(i, i) for i in range(layers)]


def last_third(layers: int) -> Cells:
    """The diagonal's last L // 3 cells, at least one."""
    return same_layer(layers)[-max(layers // 3, 1) :]


def far_apart(layers: int) -> Cells:
    """Cells i, j with |i - j| > L/2."""
    return [(i, j) for i in range(layers) for j in range(layers) if abs(i - j) > layers / 2]


def mean_over(
    cells: Sequence[tuple[int, int]],
    value: NDArray[np.float64],
    replicates: NDArray[Any] | None,
    sizes: NDArray[np.int64],
) -> tuple[float | None, list[float] | None]:
    """The mean of a matrix over cells that are not nan, and the jackknife interval of that mean.

    Args:
        cells: (row, column) of each.
        value: (X, Y).
        replicates: (G, X, Y) the same without each group; None for no interval.
        sizes: (G,) units in each group.

    Returns:
        The mean, None where no cell is defined; [lower, upper], None where there is none.
    """
    cells = [cell for cell in cells if not np.isnan(value[cell])]
    if not cells:
        return None, None
    i, j = np.array(cells).T
    mean = float(value[i, j].mean())
    if replicates is None:
        return mean, None
    each = replicates[:, i, j].mean(1, dtype=np.float64)
    lower, upper = interval(mean, each, sizes)
    return mean, None if np.isnan(lower) else [float(lower), float(upper)]
