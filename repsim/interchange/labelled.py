"""A matrix from elsewhere as a result of repsim's: labelled, summed up, duplicates marked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repsim.compare import AllPairs
from repsim.errors import UserError
from repsim.similarity import Pairs

if TYPE_CHECKING:
    import xarray as xr

Side = tuple[str, str]  # model, condition
# Rows of equal content agree to the rounding of float32.
EQUAL = 1e-6
# Two networks' layers are never this similar all along the diagonal.
ITSELF = 1e-3
# With fewer columns, two rows may agree by accident.
COLUMNS = 4


def labelled(
    matrix: NDArray[np.float64],
    sides: tuple[Side, Side],
    layers: tuple[Sequence[str], Sequence[str]],
    *,
    samples: int,
    attributes: Mapping[str, Any],
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> xr.Dataset:
    """A result as `repsim.compare.compare` gives it, with `x_duplicate_of` and `y_duplicate_of`.

    Those two coordinates name for each row (column) the first one of equal content, and are empty
    where there is none: equal to 1e-6 in every cell.

    Args:
        matrix: (x, y) similarities.
        sides: (model, condition) of the rows and of the columns.
        layers: names of the rows and of the columns.
        samples: images behind it; 0 if not known.
        attributes: estimator, kernel and what else decided the values.
        notes: what a reader should know.
        provenance: where the matrix is from.

    Raises:
        UserError: both sides are called the same, but they are not the same.
    """
    x, y = ([(*side, layer) for layer in names] for side, names in zip(sides, layers, strict=True))
    if sides[0] == sides[1]:
        if x != y or not with_itself(matrix):
            raise UserError(
                f"both sides are called {':'.join(sides[0])} and are not the same; name them, "
                f"e.g. --pair {sides[0][0]}:clean,{sides[0][0]}-2:clean"
            )
        keys, value = x, matrix
    else:
        keys = [*x, *y]
        value = np.full((len(keys), len(keys)), np.nan)
        value[: len(x), len(x) :] = matrix
    pairs = Pairs(value, None, np.array([], dtype=np.int64), dict(attributes), list(notes))
    result = AllPairs(keys, samples, "cka", pairs).matrix(*sides)
    known = json.loads(result.attrs["provenance"])
    result.attrs["provenance"] = json.dumps({**known, **provenance})
    return result.assign_coords(
        x_duplicate_of=("x", _originals(matrix, layers[0])),
        y_duplicate_of=("y", _originals(matrix.T, layers[1])),
    )


def with_itself(matrix: NDArray[np.float64]) -> bool:
    """Whether each row's layer is its column's too: CKA with itself is 1, nan where undefined."""
    square = matrix.shape[0] == matrix.shape[1]
    return square and bool((np.nan_to_num(np.abs(matrix.diagonal() - 1)) < ITSELF).all())


def _originals(matrix: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.object_]:
    """For each row the name of the first that is equal to it, or nothing."""
    originals: list[str] = []
    for i, row in enumerate(matrix):
        equal = np.isclose(matrix[:i], row, rtol=0, atol=EQUAL, equal_nan=False).all(1)
        enough = matrix.shape[1] >= COLUMNS
        originals.append(names[int(np.argmax(equal))] if enough and equal.any() else "")
    return np.array(originals, dtype=object)
