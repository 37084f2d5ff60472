"""Finding 6: networks whose end is more alike clean and attacked are the more robust ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from repsim.findings.cells import DIAGONAL, END, FINAL
from repsim.findings.desk import Desk
from repsim.findings.evidence import UNTRAINED, Evidence, Network
from repsim.findings.finding import Finding
from repsim.findings.number import NETWORKS, Number
from repsim.findings.verdict import outcome

KEY = "6"
CLAIM = (
    "The similarity of clean and attacked representations at the end of the network goes with "
    "robust accuracy across networks, also among adversarially trained networks alone."
)
LEAST = 4  # networks: Fisher's interval needs more than 3
LEVEL = 0.975


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's ρ: the correlation of the ranks, ties sharing theirs; nan where one is constant.

    Args:
        x: n values.
        y: n values of the same networks.
    """
    from scipy.stats import rankdata

    a, b = (rankdata(one) - (len(one) + 1) / 2 for one in (x, y))
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def rank_interval(rho: float, count: int, independent: int) -> tuple[float, float] | None:
    """95% interval of Spearman's ρ on Fisher's scale (Bonett and Wright 2000).

    tanh(artanh ρ ± 1.96·√((1 + ρ²/2)/(m - 3))). A ρ of ±1 counts as half a step of the scale less,
    or its interval would be a point.

    Args:
        rho: of `count` networks.
        count: networks.
        independent: m, how many of them count as independent: two seeds of one recipe are much
            the same network twice, and count as one.

    Returns:
        None for fewer than 4 independent ones, or where ρ is not defined.
    """
    if independent < LEAST or np.isnan(rho):
        return None
    most = 1 - 6 / (count * (count**2 - 1))
    inner = min(max(rho, -most), most)
    half = float(ndtri(LEVEL)) * np.sqrt((1 + inner**2 / 2) / (independent - 3))
    middle = np.arctanh(inner)
    lower, upper = float(np.tanh(middle - half)), float(np.tanh(middle + half))
    return min(lower, rho), max(upper, rho)


def ranks(desk: Desk) -> Finding:
    """Two rank correlations of the last third's CKA(clean, own attack) with robust accuracy.

    Of all trained networks, where two clusters, st and at, force it; and of adversarially trained
    ones alone, whatever the scheme, the budget and the scenario. The spread is over seeds: each
    network of a recipe in turn stands for it.
    """
    evidence = desk.evidence
    groups = {
        "all": ("all trained networks",
                [one for one in evidence.networks if one.scenario != UNTRAINED]),
        "at": ("adversarially trained networks alone", evidence.adversarial()),
    }  # fmt: skip
    accuracy = robust_accuracy(evidence)
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    for name, (words, networks) in groups.items():
        for part, layers in ((END, "last third"), (FINAL, "final"), (DIAGONAL, "all")):
            made = _number(
                desk, networks, accuracy, part, evidence.own, f"rank_correlation_{name}",
                f"Rank correlation of CKA(clean, attacked), {part}, with robust accuracy, {words}",
                layers,
            )  # fmt: skip
            if part == END and made:
                differences.append(replace(made, outcome=outcome(
                    made.value, made.lower, made.upper, made.spread, desk.margin
                )))  # fmt: skip
            elif made:
                numbers.append(made)
        made = _number(
            desk, networks, accuracy, END, evidence.noise, f"rank_correlation_{name}_noise",
            f"Rank correlation of CKA(clean, noise), last third, with robust accuracy, {words}",
            "last third",
        )  # fmt: skip
        controls += [made] if made else []
    if len(differences) < 2:
        return desk.missing(
            KEY, CLAIM, f"robust accuracies ({evidence.robust}) and similarities of at least "
            f"{LEAST} adversarially trained networks",
        )  # fmt: skip
    notes = [
        f"{one.label}: {len(one.networks)} networks of "
        f"{len(_recipes(evidence, one.networks))} recipes; seeds of one recipe count as one."
        for one in differences
    ]
    return desk.finding(KEY, CLAIM, numbers, controls, differences, notes)


def robust_accuracy(evidence: Evidence) -> dict[str, float]:
    """By network; none where there is no table."""
    if evidence.accuracy is None:
        return {}
    table = evidence.accuracy
    table = table[table["condition"] == evidence.robust]
    return {
        str(network): float(value)
        for network, value in zip(table["network"], table["accuracy"], strict=True)
    }


def _number(
    desk: Desk, networks: Sequence[Network], accuracy: dict[str, float], part: str,
    condition: str, key: str, label: str, layers: str,
) -> Number | None:  # fmt: skip
    """One rank correlation; None for too few networks."""
    evidence, alike = desk.evidence, {}
    for one in networks:
        x, y = f"{one.name}:{evidence.clean}", f"{one.name}:{condition}"
        alignment = desk.similarity.find(part, x, y)
        if alignment is not None and not np.isnan(alignment.value) and one.name in accuracy:
            alike[one.name] = alignment.value
    if len(alike) < LEAST:
        return None
    names = list(alike)

    def rho(chosen: Sequence[str]) -> float:
        return rank_correlation([alike[one] for one in chosen], [accuracy[one] for one in chosen])

    recipes = _recipes(evidence, names)
    value = rho(names)
    found = rank_interval(value, len(names), len(recipes)) or (None, None)
    turns = max(len(seeds) for seeds in recipes)
    each = [rho([seeds[turn % len(seeds)] for seeds in recipes]) for turn in range(turns)]
    several = turns > 1 and len(recipes) >= LEAST and not np.isnan(each).any()
    return Number(
        key=key, label=label, value=value, lower=found[0], upper=found[1], over=NETWORKS,
        networks=tuple(names), conditions=(evidence.clean, condition), layers=layers, signed=True,
        seed_lower=min(each) if several else None, seed_upper=max(each) if several else None,
        spread=max(each) - min(each) if several else None,
        command=f"python -m repsim.findings similarity.h5 accuracy.csv:{evidence.robust} "
        f'"ranks [{part}]({evidence.clean}, {condition}): {", ".join(names)}"',
    )  # fmt: skip


def _recipes(evidence: Evidence, names: Sequence[str]) -> list[list[str]]:
    """Networks by scheme, scenario and budget: the seeds of each."""
    found: dict[tuple[str, str, float | None], list[str]] = {}
    for one in sorted(evidence.networks, key=lambda one: one.seed):
        if one.name in names:
            eps = None if one.eps is None else round(one.eps, 6)
            found.setdefault((one.scheme, one.scenario, eps), []).append(one.name)
    return list(found.values())
