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


MASKS = {
    "null": ("null_95", "within\nchance", "repsim cka --permutations 999"),
    "max": ("null_95_max", "within\nchance", "repsim cka --permutations 999"),
    "zero": ("lower", "0 in the\ninterval", "more than one jackknife group"),
}


def masked(result: xr.Dataset, mask: str) -> NDArray[np.bool_]:
    """Cells that a mask covers, (x layers, y layers); none that is NaN.

    Args:
        result: a comparison.
        mask: `null`: cells not above the 95% quantile of their own permutation null. `max`: not
            above that of the largest cell. `zero`: cells whose 95% interval holds 0.

    Raises:
        UserError: another word, or a result without what the mask needs.
    """
    require(mask in MASKS, f"mask expects one of {', '.join(MASKS)}; got {mask!r}")
    variable, _, source = MASKS[mask]
    require(
        variable in result.variables,
        f"the mask {mask} expects a result with {variable}; this one has none; make it with "
        f"{source}",
    )
    values = matrix(result)
    if "excludes_0" in result.variables and mask == "zero":
        return np.asarray(~result["excludes_0"].transpose("x", "y").values & ~np.isnan(values))
    if mask == "zero":
        return (matrix(result, "lower") <= 0) & (matrix(result, "upper") >= 0)
    level = matrix(result, variable) if mask == "null" else float(result[variable])
    return np.asarray(values <= level)


def is_difference(results: Iterable[xr.Dataset]) -> bool:
    """Whether the results are differences of two.

    Raises:
        UserError: only some are: they have no common scale.
    """
    found = {bool(result.attrs.get("difference")) for result in results}
    require(
        len(found) <= 1,
        "one figure has one scale; got differences and similarities; make a figure for each",
    )
    return True in found


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
    label = f"{kernel} {name}".strip() + (f" ({estimator})" if estimator else "")
    return f"difference in {label}" if is_difference(results) else label


_ACRONYMS = {"cka", "cca", "svcca", "pwcca", "rsa", "hsic", "nbs"}


def require(condition: Any, message: str) -> None:
    """Raise UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)
