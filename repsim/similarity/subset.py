"""Some of the samples of a representation: of those that an attack fooled, of one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.similarity.grams import GramRepresentation
from repsim.similarity.representation import ArrayRepresentation, Representation

AMONG = ("fooled", "unfooled", "right")
_ROWS = 256  # rows read at once of which some are wanted


@dataclass(frozen=True)
class Subset:
    """The samples `chosen` (k,) of another representation, in ascending order; see `subset`."""

    of: Representation
    chosen: NDArray[np.int64]

    @property
    def model(self) -> str:
        """As in the whole."""
        return self.of.model

    @property
    def condition(self) -> str:
        """As in the whole."""
        return self.of.condition

    @property
    def layer(self) -> str:
        """As in the whole."""
        return self.of.layer

    @property
    def samples(self) -> int:
        """Number of rows."""
        return len(self.chosen)

    @property
    def features(self) -> int:
        """As in the whole."""
        return self.of.features

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the chosen samples start to stop; what lies between them is read too."""
        wanted = self.chosen[start:stop]
        if not len(wanted):
            return self.of.rows(0, 0)
        found = []
        for begin in range(int(wanted[0]), int(wanted[-1]) + 1, _ROWS):
            end = min(begin + _ROWS, int(wanted[-1]) + 1)
            inside = wanted[(wanted >= begin) & (wanted < end)]
            if len(inside):
                found.append(self.of.rows(begin, end)[inside - begin])
        return np.concatenate(found)


@dataclass(frozen=True)
class GramSubset(Subset):
    """The same of a representation of which only the inner products are known."""

    of: GramRepresentation

    def gram(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """See `GramRepresentation`; the centre is that of the whole."""
        i, j = self.chosen[rows], self.chosen[columns]
        if not (len(i) and len(j)):
            return np.zeros((len(i), len(j)), dtype=np.float32)
        block = self.of.gram(slice(int(i[0]), int(i[-1]) + 1), slice(int(j[0]), int(j[-1]) + 1))
        return block[np.ix_(i - i[0], j - j[0])]


def subset(representation: Representation, chosen: NDArray[np.int64]) -> Representation:
    """Some of the samples of a representation of either kind.

    Args:
        representation: the whole.
        chosen: (k,) positions of samples, ascending, none twice.

    Raises:
        UserError: positions that are not ascending or not there.
    """
    chosen = np.asarray(chosen, dtype=np.int64)
    n = representation.samples
    if (np.diff(chosen) <= 0).any() or (len(chosen) and not 0 <= chosen[0] <= chosen[-1] < n):
        raise UserError(f"a subset expects ascending positions from 0 to {n - 1}, none twice")
    kind = GramSubset if isinstance(representation, GramRepresentation) else Subset
    return kind(representation, chosen)  # type: ignore[arg-type]


def in_memory(representation: Representation) -> Representation:
    """The same, read once; a Gram matrix as it is."""
    if isinstance(representation, GramRepresentation | ArrayRepresentation):
        return representation
    return ArrayRepresentation(
        np.asarray(representation.rows(0, representation.samples)),
        layer=representation.layer,
        condition=representation.condition,
        model=representation.model,
    )


def images_among(
    among: str, right: Sequence[NDArray[np.bool_]], attacked: Sequence[NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """The images on which an attack succeeded, or did not.

    Args:
        among: `right`: classified correctly clean, by every network. `fooled`: of these, those
            that are wrong under every attack. `unfooled`: of these, those that are still right
            under every attack. An image that was wrong before is neither.
        right: for each network (n,) whether it classifies each clean image correctly.
        attacked: for each attack (n,) the same of the attacked images.

    Returns:
        (k,) positions, ascending.

    Raises:
        UserError: another word, or no attack to tell fooled from unfooled.
    """
    if among not in AMONG:
        raise UserError(f"--among expects one of {', '.join(AMONG)}; got {among!r}")
    chosen = np.logical_and.reduce(right)
    if among != "right":
        if not attacked:
            raise UserError(
                f"--among {among} expects an attack on one side of the pair; got none; try "
                "--pair clean,adv"
            )
        for still_right in attacked:
            chosen = chosen & (still_right if among == "unfooled" else ~still_right)
    return np.flatnonzero(chosen)
