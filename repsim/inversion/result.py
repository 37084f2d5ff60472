"""What was found as a result file's content, and as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repsim import __version__
from repsim.evaluate import accuracy_interval
from repsim.inversion.shared import Estimate, SharedInvariances
from repsim.result import SCHEMA

if TYPE_CHECKING:
    import xarray as xr

MATRICES = ("stir", "inverted_cka", "cka", "noise", "start")


def to_dataset(
    found: SharedInvariances, labels: NDArray[np.int64], provenance: Mapping[str, Any]
) -> xr.Dataset:
    """A result that `repsim.result` writes, reads and exports, and `repsim plot` draws.

    Args:
        found: M networks, k repetitions, n images.
        labels: (n,) true classes.
        provenance: plain values: settings, checkpoints, data.

    Returns:
        `similarity` (x, y) with `lower`, `upper` is STIR(x|y), y the network inverted;
        `inverted_cka`, `cka`, `noise`, `start` each with `_lower`, `_upper`; of all but `cka` the
        values of each repetition as `stir_repetitions` (repetition, x, y) and so on; `kept` (x, y);
        `distance`, `start_distance`, `pixels` (y, repetition, sample). See `SharedInvariances`.
    """
    import xarray as xr

    pair = ("x", "y")
    variables: dict[str, Any] = {}
    for name in MATRICES:
        estimate: Estimate = getattr(found, name)
        prefix = "" if name == "stir" else f"{name}_"
        variables["similarity" if name == "stir" else name] = (pair, estimate.value)
        if estimate.lower is not None:
            variables[f"{prefix}lower"] = (pair, estimate.lower)
            variables[f"{prefix}upper"] = (pair, estimate.upper)
        if name != "cka":
            variables[f"{name}_repetitions"] = (("repetition", *pair), estimate.repetitions)
    variables["kept"] = (pair, found.kept)
    for name in ("distance", "start_distance", "pixels"):
        variables[name] = (("y", "repetition", "sample"), getattr(found, name))
    coordinates = {
        f"{axis}_{word}": (axis, np.array(values, dtype=object))
        for axis, condition in (("x", "clean"), ("y", "inverted"))
        for word, values in (
            ("layer", found.layers),
            ("condition", [condition] * len(found.models)),
            ("model", found.models),
        )
    }
    return xr.Dataset(
        variables,
        coordinates,
        {
            "repsim_schema": SCHEMA,
            "measure": "stir",
            "estimator": found.estimator,
            "kernel": "linear",
            "samples": found.distance.shape[2],
            "notes": json.dumps(found.notes),
            "summary": json.dumps(summary(found, labels)),
            "provenance": json.dumps({
                "repsim_version": __version__,
                "interval": f"95%, delete-one-group jackknife over {found.groups} groups of "
                "samples, of the mean over repetitions" if found.groups else None,
                **provenance,
            }),
        },
    )  # fmt: skip


def summary(found: SharedInvariances, labels: NDArray[np.int64]) -> dict[str, Any]:
    """The numbers as plain values; matrices are lists of rows, columns the networks inverted."""
    numbers: dict[str, Any] = {
        "models": found.models,
        "layers": found.layers,
        "samples": found.distance.shape[2],
        "repetitions": found.distance.shape[1],
        "estimator": found.estimator,
    }
    for name in MATRICES:
        estimate: Estimate = getattr(found, name)
        numbers[name] = _plain(estimate.value)
        if estimate.lower is not None and estimate.upper is not None:
            numbers[f"{name}_ci"] = _plain(np.stack([estimate.lower, estimate.upper], -1))
        if name != "cka" and (spread := estimate.spread) is not None:
            numbers[f"{name}_spread"] = _plain(spread)
    numbers["kept"] = _plain(found.kept)
    for name in ("distance", "start_distance", "pixels"):
        values = getattr(found, name).reshape(len(found.models), -1)
        # With fewer images than ten, these are the ends or near them.
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], axis=1)
        numbers[name] = {
            "median": _plain(middle),
            "from_10_to_90%": _plain(np.stack([low, high], -1)),
        }
    numbers["accuracy"] = {
        name: {
            "clean_accuracy": float((before == labels).mean()),
            "clean_accuracy_ci": accuracy_interval(int((before == labels).sum()), len(labels)),
            # On images inverted from each network in the order of `models`.
            "inverted_accuracy": _plain((found.predictions[name] == labels).mean((1, 2))),
        }
        for name, before in found.clean_predictions.items()
    }
    return numbers


def _plain(values: NDArray[np.float64]) -> Any:
    """Nested lists; None for nan, which JSON does not have."""
    if values.ndim:
        return [_plain(np.asarray(part)) for part in values]
    return None if np.isnan(values) else float(values)
