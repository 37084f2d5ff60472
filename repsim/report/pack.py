"""Matrices in few bytes: whole numbers of a ten-thousandth, two bytes a value and an interval."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from repsim.compare import AllPairs
from repsim.report.curves import Side, positions
from repsim.similarity import interval

STEP = 1e-4  # what the page shows is exact to its four decimals
LARGEST = 32766
NOT_DEFINED = -32768  # of a value
NO_INTERVAL = 65535  # of half an interval's length
LIMIT = 400_000  # cells, 1.6 MB and a third more as text: the page stays under 5 MB


@dataclass
class Packed:
    """Blocks of the matrix of all pairs, as the page reads them.

    Attributes:
        text: base64 of all values (int16), then of half the length of all intervals (uint16),
            little-endian, in units of `step`.
        step: the unit.
        cells: how many of each.
        blocks: by the numbers of two sides, "3,7" with the smaller first: [offset, rows, columns].
        left_out: pairs of sides that were wanted and did not fit.
    """

    text: str
    step: float
    cells: int
    blocks: dict[str, list[int]] = field(default_factory=dict)
    left_out: list[tuple[Side, Side]] = field(default_factory=list)


def pack(
    pairs: AllPairs,
    sides: Sequence[Side],
    wanted: Sequence[tuple[int, int]],
    *,
    limit: int = LIMIT,
) -> Packed:
    """Blocks of similarity with their 95% intervals.

    Args:
        pairs: everything.
        sides: those that the page names by their number.
        wanted: pairs of sides' numbers, those first that matter most.
        limit: cells in all; what comes after is left out.
    """
    places = [positions(pairs, side) for side in sides]
    values: list[NDArray[np.float64]] = []
    halves: list[NDArray[np.float64]] = []
    packed = Packed("", STEP, 0)
    for a, b in dict.fromkeys((min(pair), max(pair)) for pair in wanted):
        rows, columns = places[a], places[b]
        count = len(rows) * len(columns)
        if not count:
            continue
        if packed.cells + count > limit:
            packed.left_out.append((sides[a], sides[b]))
            continue
        block = np.ix_(rows, columns)
        value = pairs.pairs.value[block]
        half = np.full(value.shape, np.nan)
        if pairs.pairs.replicates is not None:
            without = pairs.pairs.replicates[:, block[0], block[1]]
            half = value - interval(value, without, pairs.pairs.sizes)[0]
        packed.blocks[f"{a},{b}"] = [packed.cells, len(rows), len(columns)]
        values.append(value.ravel())
        halves.append(half.ravel())
        packed.cells += count
    if not values:
        return packed
    value, half = np.concatenate(values), np.concatenate(halves)
    finite = np.abs(value[np.isfinite(value)])
    # A measure without bound has larger numbers, and then fewer decimals.
    while finite.size and finite.max() > LARGEST * packed.step:
        packed.step *= 10
    whole = np.where(np.isnan(value), NOT_DEFINED, np.round(value / packed.step)).astype("<i2")
    length = np.where(np.isnan(half), 0, np.round(half / packed.step)).clip(0, NO_INTERVAL - 1)
    lengths = np.where(np.isnan(half), NO_INTERVAL, length).astype("<u2")
    packed.text = base64.b64encode(whole.tobytes() + lengths.tobytes()).decode()
    return packed
