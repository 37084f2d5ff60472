"""How often the probes of two networks say the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.evaluate import accuracy_interval
from repsim.probe.report import ProbeReport
from repsim.store import match_rows

if TYPE_CHECKING:
    import pandas as pd


def agreement(a: ProbeReport, b: ProbeReport, *, pairs: str = "same") -> pd.DataFrame:
    """Agreement of the probes' predictions for the same images.

    Where the test condition is an attack, each network saw its own attacked images, unless the
    attack was made on a surrogate that both share.

    Args:
        a, b: of two networks (or of one, probed in two ways), of the same test images; those that
            only one has are left out.
        pairs: "same": layers of the same name; "all": every layer with every layer.

    Returns:
        A row for each pair of layers, training, test condition and target: a, b (networks),
        layer_a, layer_b, train, test, attack, agreement (fraction of equal predictions), lower,
        upper (exact binomial 95% interval over images), kappa (Cohen 1960: agreement beyond that
        of independent predictions with the same frequencies; nan where that is certain), samples.

    Raises:
        UserError: no images or no rows in common, or other classes.
    """
    import pandas as pd

    if pairs not in ("same", "all"):
        raise UserError(f"pairs expects same or all; got {pairs!r}")
    place = match_rows(a.ids, b.ids)
    here = place >= 0
    if not here.any():
        raise UserError(
            f"agreement expects probes tested on the same images; {a.network} and {b.network} "
            "have none in common"
        )
    if not np.array_equal(a.labels[here], b.labels[place[here]]):
        raise UserError(
            f"agreement expects the same classes; {a.network} and {b.network} were tested on the "
            "same images with other labels"
        )
    common = [key for key in a.predictions if key[1:] in {other[1:] for other in b.predictions}]
    found = []
    for layer, *rest in common:
        others = [key for key in b.predictions if key[1:] == tuple(rest)]
        for key in others:
            if pairs == "same" and key[0] != layer:
                continue
            mine = a.predictions[layer, rest[0], rest[1], rest[2]][here]
            found.append(_row(mine, b.predictions[key][place[here]], {
                "a": a.network, "b": b.network, "layer_a": layer, "layer_b": key[0],
                "train": rest[0], "test": rest[1], "attack": rest[2],
            }))  # fmt: skip
    if not found:
        raise UserError(
            f"agreement expects rows of the same layer, training and test; {a.network} and "
            f"{b.network} have none in common; networks with other layers: "
            "repsim.probe.agreement(a, b, pairs='all')"
        )
    return pd.DataFrame(found)


def agreements(reports: Mapping[str, ProbeReport]) -> pd.DataFrame:
    """`agreement` of every two reports, layers of the same name, under the reports' names.

    Raises:
        UserError: as `agreement`.
    """
    import pandas as pd

    pairs = combinations(reports.items(), 2)
    return pd.concat(
        [agreement(one, other).assign(a=x, b=y) for (x, one), (y, other) in pairs],
        ignore_index=True,
    )


def different_attacks(reports: Mapping[str, ProbeReport]) -> list[str]:
    """What to say where two reports tested on other attacks under one name."""
    found = []
    for (x, one), (y, other) in combinations(reports.items(), 2):
        mine, theirs = (report.provenance.get("attacks", {}) for report in (one, other))
        found += [
            f"{name} was made with other settings for {x} than for {y}"
            for name in mine
            if name in theirs
            and (mine[name] or {}).get("params") != (theirs[name] or {}).get("params")
        ]
    return found


def _row(x: NDArray[np.int64], y: NDArray[np.int64], names: dict[str, str]) -> dict[str, Any]:
    n, same = len(x), int((x == y).sum())
    lower, upper = accuracy_interval(same, n)
    return {**names, "agreement": same / n, "lower": lower, "upper": upper,
            "kappa": kappa(x, y), "samples": n}  # fmt: skip


def kappa(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    """Cohen's kappa of two lists of predictions (n,); nan where both only ever say one class."""
    classes = 1 + int(max(x.max(), y.max()))
    chance = float(
        np.bincount(x, minlength=classes) @ np.bincount(y, minlength=classes) / len(x) ** 2
    )
    if chance == 1:
        return float("nan")
    return (float((x == y).mean()) - chance) / (1 - chance)
