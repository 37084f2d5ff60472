"""What the figures read from a comparison result: the matrix, its layers and its words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repsim.errors import UserError

Matrix = NDArray[np.float64]


def matrix(result: xr.Dataset, variable: str = "similarity") -> Matrix:
    """A variable of a comparison result as (x layers, y layers) float64.

    Raises:
        UserError: not a comparison result, or an empty one.
    """
    wanted = [variable, *(f"{side}_{word}" for side in "xy" for word in ("layer", "condition"))]
    missing = [name for name in wanted if name not in result.variables]
    if missing or set(result[variable].dims) != {"x", "y"}:
        raise UserError(
            f"a figure needs a comparison result with {variable} (x, y) and its layer coordinates; "
            f"got {', '.join(map(str, result.variables)) or 'nothing'}; try repsim cka first"
        )
    values = np.asarray(result[variable].transpose("x", "y").values, dtype=np.float64)
    if values.size == 0:
        raise UserError(f"a figure needs at least one layer on each side; got shape {values.shape}")
    return values


def layers(result: xr.Dataset, side: str) -> list[str]:
    """Layer names of side "x" (rows) or "y" (columns)."""
    return [str(name) for name in np.atleast_1d(result[f"{side}_layer"].values)]


def words(result: xr.Dataset, side: str, word: str) -> str:
    """The condition or the model of a side; several are joined by commas in their order."""
    name = f"{side}_{word}"
    if name not in result.variables:
        return ""
    return ", ".join(dict.fromkeys(str(value) for value in np.atleast_1d(result[name].values)))


def is_control(result: xr.Dataset) -> bool:
    """Whether one side of the result is the random-noise control."""
    return "noise" in (words(result, "x", "condition"), words(result, "y", "condition"))


def measure_label(results: Iterable[xr.Dataset]) -> str:
    """The measure in words, as in "linear CKA (debiased)": only what all results agree on.

    Raises:
        UserError: results of different measures, which have no common scale.
    """
    results = list(results)

    def common(attribute: str) -> str:
        found = {str(result.attrs.get(attribute) or "") for result in results}
        return found.pop() if len(found) == 1 else ""

    measures = {str(result.attrs.get("measure") or "similarity") for result in results}
    if len(measures) > 1:
        raise UserError(
            f"one figure has one scale and needs one measure; got {', '.join(sorted(measures))}; "
            "make a figure for each"
        )
    measure = measures.pop().replace("_", " ")
    name = measure.upper() if measure.lower() in _ACRONYMS else measure
    kernel, estimator = common("kernel"), common("estimator")
    if kernel == "rbf":
        kernel = "RBF"
    return f"{kernel} {name}".strip() + (f" ({estimator})" if estimator else "")


_ACRONYMS = {"cka", "cca", "svcca", "pwcca", "rsa", "hsic", "nbs"}


def require(condition: Any, message: str) -> None:
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)
