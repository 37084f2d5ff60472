"""Block structure: a run of layers that are alike, and unlike the rest, beyond their distance.

Layers near one another are alike in any network, so a matrix that depends on |i - j| alone has no
blocks. What is left when the mean of each diagonal |i - j| = d is taken away is R; the block
structure of a run B of layers is

    mean of R_ij over i ≠ j in B  -  mean of R_ij over i in B, j not in B

and that of a matrix the largest over runs of at least two layers that are a quarter to three
quarters of all (of 11: 3 to 8). "Block structure" is meant as in Nguyen et al. 2021 (arXiv
2010.15327), who show it and give no number.

The plain contrast is the same of the matrix itself, distance and all. It falls wherever long-range
similarity rises, so it says little of its own; but where the two move in opposite directions, it is
the definition that decides whether there is more block structure, not the matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST = 4  # layers: of fewer no run leaves a rest


def best_block(value: Array, *, plain: bool = False) -> tuple[int, int] | None:
    """The run of layers with the largest block structure.

    Args:
        value: (L, L) symmetric; layers that are nan on the diagonal are left out.
        plain: the plain contrast instead.

    Returns:
        (first, one past the last) of the L layers; None for fewer than 4 defined ones.
    """
    kept = _defined(value)
    n = len(kept)
    if n < LEAST:
        return None
    rest = value[np.ix_(kept, kept)]
    rest = rest - np.diag(rest.diagonal()) if plain else _beyond_distance(rest, kept)
    # Sums over all squares [a, b) × [a, b) and rows [a, b) by cumulative sums.
    total = np.zeros((n + 1, n + 1))
    total[1:, 1:] = rest.cumsum(0).cumsum(1)
    edge = np.arange(n + 1)
    within = total[edge[None], edge[None]] - total - total.T + total[edge[:, None], edge[:, None]]
    rows = total[None, :, -1] - total[:, None, -1]  # (a, b)
    size = edge[None] - edge[:, None]
    least = max(2, -(-n // 4))  # rounded up: half a quarter is no quarter
    allowed = (size >= least) & (size <= n - least)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = within / (size * (size - 1)) - (rows - within) / (size * (n - size))
    a, b = np.unravel_index(np.where(allowed, score, -np.inf).argmax(), score.shape)
    return int(kept[a]), int(kept[b - 1]) + 1


def block_weights(value: Array, first: int, last: int, *, plain: bool = False) -> Array | None:
    """(L, L) weights w with Σ w·value the block structure of layers first, ..., last - 1.

    None where that run, or what is outside it, has too few defined layers.
    """
    kept = _defined(value)
    inside = (kept >= first) & (kept < last)
    size, n = int(inside.sum()), len(kept)
    if size < 2 or size == n:
        return None
    raw = np.outer(inside, inside) / (size * (size - 1))
    raw -= np.outer(inside, ~inside) / (size * (n - size))
    np.fill_diagonal(raw, 0.0)
    # Taking away the diagonals' means is a symmetric projection: it may act on the weights.
    found = np.zeros_like(value)
    found[np.ix_(kept, kept)] = raw if plain else _beyond_distance(raw, kept)
    return found


def _defined(value: Array) -> NDArray[np.intp]:
    return np.flatnonzero(~np.isnan(value.diagonal()))


def _beyond_distance(value: Array, places: NDArray[np.intp]) -> Array:
    """Without the mean over all cells of the same |i - j|; the diagonal is 0."""
    distance = abs(places[:, None] - places[None])
    sums = np.bincount(distance.ravel(), weights=value.ravel())
    counts = np.bincount(distance.ravel())
    found: Array = value - (sums / np.maximum(counts, 1))[distance]
    np.fill_diagonal(found, 0.0)
    return found
