"""Curves from all pairs: same layer against same layer, and similarity by distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repsim.compare import AllPairs
from repsim.similarity import interval

Side = tuple[str, str]  # network, condition
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Values with 95% intervals over images: (n,) each; None where there are none."""

    value: Values
    lower: Values | None
    upper: Values | None


def positions(pairs: AllPairs, side: Side) -> list[int]:
    """Where the layers of a side stand, in execution order."""
    return [i for i, (model, condition, _) in enumerate(pairs.keys) if (model, condition) == side]


def same_layer(pairs: AllPairs, sides: Sequence[tuple[Side, Side]]) -> Curve:
    """The mean over pairs of sides of each layer's similarity to the same layer.

    Args:
        pairs: everything.
        sides: pairs of sides with equally many layers.

    Returns:
        (layers,), with the jackknife of that mean: the images are the same in all pairs.
    """
    cells = [(positions(pairs, x), positions(pairs, y)) for x, y in sides]
    value = np.mean([pairs.pairs.value[x, y] for x, y in cells], axis=0)
    replicates = pairs.pairs.replicates
    if replicates is None:
        return Curve(value, None, None)
    without = np.mean([replicates[:, x, y] for x, y in cells], axis=0)
    return Curve(value, *interval(value, without, pairs.pairs.sizes))


def by_distance(pairs: AllPairs, sides: Sequence[Side]) -> Curve:
    """The mean similarity of two layers of one side at distance d = |i − j|, over sides too.

    Returns:
        (layers,) for d = 0 to L - 1, with the jackknife of each mean.
    """
    value, without = [], []
    replicates = pairs.pairs.replicates
    for side in sides:
        at = positions(pairs, side)
        block = np.ix_(at, at)
        value.append(_diagonals(pairs.pairs.value[block][None])[0])
        if replicates is not None:
            without.append(_diagonals(replicates[:, block[0], block[1]]))
    mean = np.mean(value, axis=0)
    if replicates is None:
        return Curve(mean, None, None)
    return Curve(mean, *interval(mean, np.mean(without, axis=0), pairs.pairs.sizes))


def _diagonals(blocks: Values) -> Values:
    """(g, L, L) -> (g, L): the mean of each diagonal of symmetric matrices."""
    size = blocks.shape[1]
    found = [np.diagonal(blocks, d, axis1=1, axis2=2).mean(axis=1) for d in range(size)]
    return np.stack(found, axis=1)
