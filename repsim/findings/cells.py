"""Which cells of a matrix of layers a number is the mean of, and the numbers of an `AllPairs`."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from repsim.compare import AllPairs
from repsim.errors import UserError
from repsim.findings.blocks import best_block, block_weights
from repsim.findings.quantity import Quantity, Term, side

Array = NDArray[np.float64]

DIAGONAL, START, END, FINAL = "diagonal", "first two thirds", "last third", "final"
ALL_PAIRS, END_BLOCK, LONG_RANGE = "all pairs", "last third block", "long range"
UNLIKE = (FINAL, ALL_PAIRS, END_BLOCK)  # what networks of other layers have, too
PARTS = (DIAGONAL, START, END, FINAL, ALL_PAIRS, END_BLOCK, LONG_RANGE)
BLOCK = re.compile(r"(plain )?block (\d+):(\d+)")
SIMILARITY, WITHIN = "similarity.h5", "within.h5"


def weights(part: str, value: Array) -> Array | None:
    """What each cell counts for in a number; cells that are nan count for nothing.

    Args:
        part: of L × M layers: "diagonal" (same layer on both sides), of it the "last third"
            (L // 3, at least one), the "first two thirds" (the rest) and the "final" layer;
            "all pairs"; "last third block" (the last thirds of both sides against one another);
            "long range" (|i - j| > L/2); "block a:b" and "plain block a:b" (see
            `repsim.findings.blocks`).
        value: (L, M) similarities.

    Returns:
        (L, M) weights; None where the part has no cells, or needs the same layers on both sides.

    Raises:
        UserError: an unknown part.
    """
    rows, columns = value.shape
    block = BLOCK.fullmatch(part)
    if part not in PARTS and not block:
        raise UserError(f"a part of a matrix expects one of {', '.join(PARTS)}; got {part!r}")
    if rows != columns and part not in UNLIKE:
        return None
    if block:
        return block_weights(value, int(block[2]), int(block[3]), plain=bool(block[1]))
    i, j = np.ogrid[:rows, :columns]
    third, other = max(rows // 3, 1), max(columns // 3, 1)
    end = (i >= rows - third) & (j >= columns - other)
    chosen = {
        DIAGONAL: i == j,
        START: (i == j) & ~end,
        END: (i == j) & end,
        FINAL: (i == rows - 1) & (j == columns - 1),
        ALL_PAIRS: np.ones_like(end),
        END_BLOCK: end,
        LONG_RANGE: abs(i - j) > rows / 2,
    }[part] & ~np.isnan(value)
    count = int(chosen.sum())
    return chosen / count if count else None


class Similarities:
    """The numbers of a comparison of all layers × conditions × networks.

    Args:
        pairs: the comparison.
        file: the file of a study that holds it.
    """

    def __init__(self, pairs: AllPairs, file: str = SIMILARITY) -> None:
        self.pairs, self.file = pairs.pairs, file
        self._rows: dict[tuple[str, str], list[int]] = {}
        for place, (model, condition, _) in enumerate(pairs.keys):
            self._rows.setdefault((model, condition), []).append(place)
        self._layers = {
            name: tuple(pairs.keys[place][2] for place in places)
            for name, places in self._rows.items()
        }
        self._found: dict[Term, Quantity | None] = {}

    def layers(self, network: str, condition: str) -> tuple[str, ...]:
        """Their names in execution order."""
        return self._layers[network, condition]

    def block(self, x: str, y: str) -> tuple[Array, Array | None] | None:
        """(L, M) similarities of side x to side y and (G, L, M) replicates; None if not there."""
        rows, columns = (self._rows.get(side(one)) for one in (x, y))
        if rows is None or columns is None:
            return None
        value, replicates = self.pairs.value, self.pairs.replicates
        a, b = _slice(rows), _slice(columns)
        if a is None or b is None:
            cells = np.ix_(rows, columns)
            return value[cells], None if replicates is None else replicates[:, cells[0], cells[1]]
        return value[a, b], None if replicates is None else replicates[:, a, b]

    def find(self, part: str, x: str, y: str) -> Quantity | None:
        """The weighted mean over a part of x against y; None where it is not defined."""
        term = Term(part, x, y)
        if term not in self._found:
            self._found[term] = self._find(term)
        return self._found[term]

    def block_structure(self, x: str, *, plain: bool = False) -> Quantity | None:
        """Of one side against itself; see `best_block`. The block is that of all images."""
        found = self.block(x, x)
        ends = None if found is None else best_block(found[0], plain=plain)
        word = "plain block" if plain else "block"
        return None if ends is None else self.find(f"{word} {ends[0]}:{ends[1]}", x, x)

    def _find(self, term: Term) -> Quantity | None:
        found = self.block(term.x, term.y)
        if found is None:
            return None
        x, y = term.sides
        if term.part not in UNLIKE and self._layers[x] != self._layers[y]:
            return None
        value, replicates = found
        factors = weights(term.part, value)
        if factors is None:
            return None
        used = factors != 0
        each = None
        if replicates is not None and len(self.pairs.sizes) > 1:
            each = replicates[:, used].astype(np.float64) @ factors[used]
        return Quantity(
            ((1.0, term),), float(value[used] @ factors[used]), each, self.pairs.sizes, None,
            self.file,
        )  # fmt: skip


def _slice(places: list[int]) -> slice | None:
    """The same places as a slice, which copies nothing; None where there are gaps."""
    one = slice(places[0], places[-1] + 1)
    return one if places == list(range(one.start, one.stop)) else None
