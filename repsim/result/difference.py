"""The difference of two results: attacked minus clean, adversarially trained minus standard."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from repsim import __version__
from repsim.errors import UserError
from repsim.result.files import SCHEMA, WORDS
from repsim.similarity.difference import Estimate, difference_interval
from repsim.similarity.means import Cells, far_apart, last_third, mean_over, same_layer

if TYPE_CHECKING:
    import xarray as xr


def difference(
    a: xr.Dataset, b: xr.Dataset, *, names: tuple[str, str] = ("first", "second")
) -> xr.Dataset:
    """The similarity in `a` minus the similarity in `b`: attacked minus clean, AT minus ST.

    Where both have jackknife replicates of the same samples in the same groups, the intervals are
    paired: what the samples do to both cancels. Otherwise the two are taken as independent, their
    variances add, and a note says so.

    Args:
        a: a result of `repsim.compare.compare`.
        b: another of the same measure and the same layers on each side, in any order.
        names: what the two are called.

    Returns:
        A result in the order of `a`: `similarity` the difference, `lower`, `upper` its 95%
        interval, `excludes_0` (x, y) whether that leaves 0 out, `replicates` where they are paired;
        coordinates such as "at − st" where the two differ. The attribute `difference` names the
        two. The summary holds the differences of `alignment_mean`, `alignment_last_third` (rows
        and columns are the same layers and not all of one side) and `long_range` (the mean over
        layers i, j of L with |i - j| > L/2), their `_ci`, and as `first` and `second` the numbers
        themselves.

    Raises:
        UserError: other layers, another measure, estimator or kernel.
    """
    for attribute in ("measure", "estimator", "kernel"):
        ours, theirs = (str(one.attrs.get(attribute) or "") for one in (a, b))
        if ours != theirs:
            raise UserError(
                f"a difference expects two results of one {attribute}; got {ours or 'none'} in "
                f"{names[0]} and {theirs or 'none'} in {names[1]}"
            )
    b = b.isel({axis: _places(a, b, axis, names) for axis in "xy"})
    provenances = [json.loads(one.attrs.get("provenance", "{}")) for one in (a, b)]
    estimates = [_estimate(one) for one in (a, b)]
    groups = [known.get("jackknife") or {} for known in provenances]
    paired = bool(groups[0].get("sample_ids")) and groups[0] == groups[1]
    value = estimates[0].value - estimates[1].value
    variables: dict[str, Any] = {"similarity": (("x", "y"), value)}
    ends = difference_interval(*estimates, paired=paired)
    notes = [_about_intervals(estimates, paired, names)]
    if ends is not None:
        size = np.maximum(*(np.abs(one.value) for one in estimates))
        # Less than the replicates' float32 can tell is none: of a layer with itself.
        outside = ((ends[0] > 0) | (ends[1] < 0)) & (np.abs(value) > 1e-6 * size)
        variables |= {
            "lower": (("x", "y"), ends[0]),
            "upper": (("x", "y"), ends[1]),
            "excludes_0": (("x", "y"), outside),
        }
        if paired:
            each = np.asarray(estimates[0].replicates) - np.asarray(estimates[1].replicates)
            variables["replicates"] = (("group", "x", "y"), each.astype(np.float32))
            variables["group_size"] = ("group", estimates[0].sizes)
    summary: dict[str, Any] = {
        "difference": list(names),
        "samples": [int(one.attrs["samples"]) for one in (a, b)],
        **_means(a, b, estimates, paired),
    }
    if ends is not None:
        summary |= {"cells": outside.size, "cells_excluding_0": int(outside.sum())}
    known = provenances[0] if paired else {}
    return type(a)(
        variables,
        {
            f"{axis}_{word}": (axis, _both(a, b, f"{axis}_{word}"))
            for axis in "xy"
            for word in (*WORDS, "duplicate_of")
            if f"{axis}_{word}" in a
        },
        {
            "repsim_schema": SCHEMA,
            "difference": f"{names[0]} minus {names[1]}",
            **{key: a.attrs.get(key, "") for key in ("measure", "estimator", "kernel", "samples")},
            "notes": json.dumps([note for note in notes if note]),
            "summary": json.dumps(summary),
            "provenance": json.dumps({
                "repsim_version": __version__,
                "interval": known.get("interval"),
                "jackknife": known.get("jackknife"),
                "first": provenances[0],
                "second": provenances[1],
            }),
        },
    )  # fmt: skip


def _places(a: xr.Dataset, b: xr.Dataset, axis: str, names: tuple[str, str]) -> list[int]:
    """Where the layers of a's side lie in b's."""
    ours, theirs = ([str(v) for v in one[f"{axis}_layer"].values] for one in (a, b))
    if ours == theirs:
        return list(range(len(ours)))
    lacking = list((Counter(ours) - Counter(theirs)) or (Counter(theirs) - Counter(ours)))
    if lacking or len(set(ours)) < len(ours):
        side = "rows" if axis == "x" else "columns"
        raise UserError(
            f"a difference expects the same layers in the {side} of both results; {names[0]} has "
            f"{len(ours)}, {names[1]} {len(theirs)}"
            + (f", and not both have {lacking[0]}" if lacking else ", in another order")
            + "; choose the same --layers for both"
        )
    return [theirs.index(layer) for layer in ours]


def _estimate(result: xr.Dataset) -> Estimate:
    value = result["similarity"].transpose("x", "y").values
    if "replicates" not in result:
        return Estimate(value, None, np.array([], dtype=np.int64))
    each = result["replicates"].transpose("group", "x", "y").values.astype(np.float64)
    return Estimate(value, each, result["group_size"].values)


def _about_intervals(estimates: list[Estimate], paired: bool, names: tuple[str, str]) -> str:
    lacking = [name for name, one in zip(names, estimates, strict=True) if one.replicates is None]
    if lacking:
        return (
            f"no intervals: {' and '.join(lacking)} keeps no jackknife replicates; make it again "
            "with repsim cka"
        )
    if paired:
        return ""
    return (
        "the two are not known to be of the same images in the same groups; they are taken as "
        "independent, and their variances add"
    )


def _means(a: xr.Dataset, b: xr.Dataset, estimates: list[Estimate], paired: bool) -> dict[str, Any]:
    """The differences of the summary numbers, and the numbers."""
    layers = [str(v) for v in a["x_layer"].values]
    if layers != [str(v) for v in a["y_layer"].values]:
        return {}
    cells: dict[str, Cells] = {}
    if not all(_one_side(one) for one in (a, b)):
        cells["alignment_mean"] = same_layer(len(layers))
        cells["alignment_last_third"] = last_third(len(layers))
    cells["long_range"] = far_apart(len(layers))
    found: dict[str, Any] = {}
    numbers: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    defined = np.isfinite(estimates[0].value - estimates[1].value)
    for name, chosen in cells.items():
        chosen = [cell for cell in chosen if defined[cell]]
        for one, into in zip(estimates, numbers, strict=True):
            into[name], into[f"{name}_ci"] = mean_over(chosen, one.value, one.replicates, one.sizes)
        if not chosen:
            found[name] = found[f"{name}_ci"] = None
            continue
        i, j = np.array(chosen).T
        first, second = (
            Estimate(
                one.value[i, j].mean(),
                None if one.replicates is None else one.replicates[:, i, j].mean(1),
                one.sizes,
            )
            for one in estimates
        )
        ends = difference_interval(first, second, paired=paired)
        found[name] = float(first.value - second.value)
        found[f"{name}_ci"] = None if ends is None else [float(end) for end in ends]
    return {**found, "first": numbers[0], "second": numbers[1]}


def _one_side(result: xr.Dataset) -> bool:
    """Whether rows and columns are one network under one condition."""
    return all(
        set(map(str, result[f"x_{word}"].values)) == set(map(str, result[f"y_{word}"].values))
        for word in ("model", "condition")
    )


def _both(a: xr.Dataset, b: xr.Dataset, name: str) -> np.ndarray:
    """Names that say which was subtracted from which, where they differ."""
    ours = [str(v) for v in a[name].values]
    theirs = [str(v) for v in b[name].values] if name in b else ours
    if name.endswith("duplicate_of"):  # what is equal in one only is no duplicate of the difference
        words = [x if x == y else "" for x, y in zip(ours, theirs, strict=True)]
    else:
        words = [x if x == y else f"{x} − {y}" for x, y in zip(ours, theirs, strict=True)]
    return np.array(words, dtype=object)
