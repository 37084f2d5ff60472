"""How the samples are cut: jackknife groups, and tiles that bound the memory.

A *group* is a tenth of the samples that the jackknife leaves out together; which samples it holds
depends on their number alone. A *tile* is a run of consecutive rows that is read at once; its
length depends on the memory. Within a tile the rows are sorted by group and padded with zeros to
`groups` *blocks* of equal height, so that one matrix product of two tiles falls apart into the
sums of every pair of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

TILE = 2000  # rows of a tile at most; activations that do not stay in memory are read n/TILE times
KEPT_TILE = 1000  # where they stay, smaller Gram tiles cost nothing


@dataclass(frozen=True)
class Plan:
    """The cut of n samples.

    Attributes:
        samples: n.
        groups: number of jackknife groups G.
        group_of: (n,) the group of each sample.
        tiles: (start, stop) of each.
        block: rows m of a block; a tile has G·m rows, padding included.
        order: for each tile (G·m,) the row within the tile, 0 where padded.
        padded: for each tile (G·m,) whether the row is padding.
        keep: positions of the representations whose tiles stay in memory.
    """

    samples: int
    groups: int
    group_of: NDArray[np.int64]
    tiles: list[tuple[int, int]]
    block: int
    order: list[NDArray[np.int64]]
    padded: list[NDArray[np.bool_]]
    keep: frozenset[int]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of tiles a <= b."""
        count = len(self.tiles)
        return [(a, b) for a in range(count) for b in range(a, count)]

    def unpadded(self, values: Tensor) -> NDArray[np.float64]:
        """From (k, tiles·G·m, R) in the order of the tiles to (k, n, R) in that of the samples."""
        places = [start + order for (start, _), order in zip(self.tiles, self.order, strict=True)]
        real = np.flatnonzero(~np.concatenate(self.padded))
        back = real[np.argsort(np.concatenate(places)[real])]
        return np.asarray(values.cpu().numpy()[:, back])


def assign_groups(samples: int, groups: int) -> NDArray[np.int64]:
    """The jackknife group of each sample, (samples,) in [0, groups).

    Each run of `groups` consecutive samples holds one of every group in an order drawn with a
    fixed seed: sizes differ by one at most, and rows sorted by class, or in a cycle of classes,
    do not make a group of one class.
    """
    draws = np.random.default_rng(0).random((-(-samples // groups), groups))
    return np.argsort(draws, axis=1).reshape(-1)[:samples]


def plan_tiles(samples: int, features: Sequence[int], groups: int, memory: int) -> Plan:
    """Tiles such that Gram tiles, activations and sums of all representations fit `memory` bytes.

    The smallest representations stay in memory as far as it goes; with a single tile nothing has
    to. The length of a tile never falls below two rows a group, whatever the memory.

    Args:
        samples: number of rows n.
        features: columns of each of R representations.
        groups: jackknife groups.
        memory: bytes that tiles and activations may take. Row sums, 8·R·n·groups bytes, come
            first.
    """
    count, widest = len(features), max(features)
    free = memory - 8 * count * samples * groups

    def height(limit: int) -> int:
        # Tiles of one height, in whole runs of the assignment: blocks of one height too.
        tiles = -(-samples // limit)
        return -(-samples // (tiles * groups)) * groups

    def needed(rows: int) -> int:
        # Of a single tile only the upper blocks are needed, slightly more than half.
        gram = count * (groups + 1) / (2 * groups) if rows >= samples else count
        # Two tiles of one representation, and a third while it is read and put in order.
        return int(4 * rows * rows * (gram + 2)) + 3 * 4 * rows * widest

    limit = TILE
    everything = 4 * (samples + TILE) * sum(features)
    one_tile = samples <= TILE and needed(height(TILE)) <= free
    if not one_tile and needed(height(KEPT_TILE)) + everything <= free:
        limit = KEPT_TILE
    while needed(height(limit)) > free and limit > 2 * groups:
        limit = max(2 * groups, int(limit * 0.8))
    rows = height(limit)
    tiles = [(start, min(start + rows, samples)) for start in range(0, samples, rows)]

    keep = set()
    if len(tiles) > 1:
        left = free - needed(rows)
        for position in np.argsort(features, kind="stable"):
            left -= 4 * rows * len(tiles) * features[position]
            if left < 0:
                break
            keep.add(int(position))

    group_of = assign_groups(samples, groups)
    block = rows // groups
    order, padded = [], []
    for start, stop in tiles:
        local = group_of[start:stop]
        index = np.zeros((groups, block), dtype=np.int64)
        empty = np.ones((groups, block), dtype=np.bool_)
        for group in range(groups):
            members = np.flatnonzero(local == group)
            index[group, : len(members)] = members
            empty[group, : len(members)] = False
        order.append(index.reshape(-1))
        padded.append(empty.reshape(-1))
    return Plan(samples, groups, group_of, tiles, block, order, padded, frozenset(keep))
