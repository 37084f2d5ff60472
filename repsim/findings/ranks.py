"""Finding 6: networks whose end is more alike clean and attacked are the more robust ones.

Seeds of one recipe are much the same network again, so ranks are of recipes: similarity and
accuracy are means over a recipe's seeds, and n is the number of recipes. partial-at is left out: it
has the encoder of its at network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from repsim.findings.cells import DIAGONAL, END, FINAL
from repsim.findings.desk import Desk
from repsim.findings.evidence import FULL, PARTIAL, ST, UNTRAINED, Evidence, Network, Recipe
from repsim.findings.finding import Finding
from repsim.findings.number import FISHER, NETWORKS, Number
from repsim.findings.verdict import outcome, verdict

KEY = "6"
CLAIM = (
    "The similarity of clean and attacked representations at the end of the network goes with "
    "robust accuracy across networks, also among adversarially trained networks alone."
)
LEAST = 4  # recipes: Fisher's interval needs more than 3
LEVEL = 0.975
TURNS = 4096  # of a seed for each recipe, at most

Recipes = Sequence[Sequence[str]]


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's ρ: the correlation of the ranks, ties sharing theirs; nan where one is constant.

    Args:
        x: n values.
        y: n values of the same networks.
    """
    return float(_rank_correlations(np.array([x]), np.array([y]))[0])


def _rank_correlations(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:  # fmt: skip
    """Of each row of (turns, n) values."""
    from scipy.stats import rankdata

    a, b = (rankdata(one, axis=1) - (one.shape[1] + 1) / 2 for one in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[np.float64] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def rank_interval(rho: float, count: int) -> tuple[float, float] | None:
    """95% interval of Spearman's ρ on Fisher's scale (Bonett and Wright 2000).

    tanh(artanh ρ ± 1.96·√((1 + ρ²/2)/(n - 3))). A ρ of ±1 counts as half a step of the scale less,
    or its interval would be a point.

    Args:
        rho: of `count` recipes.
        count: n.

    Returns:
        None for fewer than 4, or where ρ is not defined.
    """
    if count < LEAST or np.isnan(rho):
        return None
    most = 1 - 6 / (count * (count**2 - 1))
    inner = min(max(rho, -most), most)
    half = float(ndtri(LEVEL)) * np.sqrt((1 + inner**2 / 2) / (count - 3))
    middle = np.arctanh(inner)
    lower, upper = float(np.tanh(middle - half)), float(np.tanh(middle + half))
    return min(lower, rho), max(upper, rho)


def of_recipes(
    recipes: Recipes, x: Mapping[str, float], y: Mapping[str, float]
) -> tuple[float, tuple[float, float] | None]:
    """ρ of the recipes' means, and its interval.

    Args:
        recipes: names of the networks of each.
        x, y: by network.
    """
    means = [[sum(of[one] for one in seeds) / len(seeds) for seeds in recipes] for of in (x, y)]
    rho = rank_correlation(*means)
    return rho, rank_interval(rho, len(recipes))


def ranks(desk: Desk) -> Finding:
    """Two rank correlations of the last third's CKA(clean, own attack) with robust accuracy.

    Of all trained recipes, where two clusters, st and at, force it; and of adversarially trained
    ones alone, whatever the scheme, the budget and the scenario. The same with noise instead of
    the attack is the control: what correlates as strongly has nothing to do with the attack.
    """
    evidence = desk.evidence
    trained = [one for one in evidence.networks if one.scenario not in (UNTRAINED, PARTIAL)]
    groups = {
        "all": ("all trained networks", trained),
        "at": ("adversarially trained networks alone",
               [one for one in trained if one.scenario != ST]),
    }  # fmt: skip
    accuracy = robust_accuracy(evidence)
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    told: list[str] = []
    for name, (words, networks) in groups.items():
        decides: Number | None = None
        for part, layers in ((END, "last third"), (FINAL, "final"), (DIAGONAL, "all")):
            made = _number(
                desk, networks, accuracy, part, evidence.own, f"rank_correlation_{name}",
                f"Rank correlation of CKA(clean, attacked), {part}, with robust accuracy, {words}",
                layers,
            )  # fmt: skip
            if part == END and made:
                decides = replace(made, outcome=outcome(
                    made.value, made.lower, made.upper, made.spread, desk.margin
                ))  # fmt: skip
                differences.append(decides)
            elif made:
                numbers.append(made)
        noise = _number(
            desk, networks, accuracy, END, evidence.noise, f"rank_correlation_{name}_noise",
            f"Rank correlation of CKA(clean, noise), last third, with robust accuracy, {words}",
            "last third",
        )  # fmt: skip
        controls += [noise] if noise else []
        if noise and decides:
            strong = noise.value >= decides.value
            told.append(f"{noise.text()} in {words}{', as strongly' if strong else ''}")
    if len(differences) < len(groups):
        return desk.missing(
            KEY, CLAIM, f"robust accuracies ({evidence.robust}) and similarities of at least "
            f"{LEAST} adversarially trained recipes",
        )  # fmt: skip
    said, reason = verdict(differences)
    if told:
        reason += f". The control, CKA(clean, noise), correlates by {'; '.join(told)}"
    return desk.finding(
        KEY, CLAIM, numbers, controls, differences, _notes(evidence, differences), (said, reason)
    )


def _notes(evidence: Evidence, differences: Sequence[Number]) -> list[str]:
    """How many recipes, and which are not independent."""
    notes = [
        f"{one.label}: {len(_recipes(evidence, one.networks))} recipes, means over their "
        f"{len(one.networks)} networks." for one in differences
    ]  # fmt: skip
    scenarios = {one.scenario for one in evidence.networks}
    if FULL in scenarios:
        notes.append(
            "full-at networks begin as at networks, so the two are not independent; the intervals "
            "count them as if they were, and are too narrow."
        )
    if PARTIAL in scenarios:
        notes.append("partial-at networks are left out: their encoders are those of at networks.")
    return notes


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
    desk: Desk, networks: Sequence[Network], accuracy: Mapping[str, float], part: str,
    condition: str, key: str, label: str, layers: str,
) -> Number | None:  # fmt: skip
    """One rank correlation; None for too few recipes."""
    evidence, alike = desk.evidence, {}
    for one in networks:
        x, y = f"{one.name}:{evidence.clean}", f"{one.name}:{condition}"
        alignment = desk.similarity.find(part, x, y)
        if alignment is not None and not np.isnan(alignment.value) and one.name in accuracy:
            alike[one.name] = alignment.value
    recipes = _recipes(evidence, alike)
    if len(recipes) < LEAST:
        return None
    value, ends = of_recipes(recipes, alike, accuracy)
    seeds = _over_seeds(recipes, alike, accuracy)
    return Number(
        key=key, label=label, value=value, lower=ends and ends[0], upper=ends and ends[1],
        over=NETWORKS, interval=FISHER if ends else "", networks=tuple(alike),
        conditions=(evidence.clean, condition), layers=layers, signed=True,
        seed_lower=seeds and seeds[0], seed_upper=seeds and seeds[1],
        spread=seeds and seeds[1] - seeds[0],
        command=f"python -m repsim.findings similarity.h5 accuracy.csv:{evidence.robust} "
        f'"ranks [{part}]({evidence.clean}, {condition}): '
        f'{", ".join(" + ".join(names) for names in recipes)}"',
    )  # fmt: skip


def _over_seeds(
    recipes: Recipes, x: Mapping[str, float], y: Mapping[str, float]
) -> tuple[float, float] | None:
    """Smallest and largest ρ where one seed stands for each recipe; None for one seed each.

    All combinations of seeds, or, where these are too many, `TURNS` of them drawn at random.
    """
    sizes = [len(names) for names in recipes]
    if prod(sizes) == 1:
        return None
    if prod(sizes) <= TURNS:
        turns = np.array(list(product(*map(range, sizes))))
    else:
        turns = np.random.default_rng(0).integers(0, sizes, size=(TURNS, len(sizes)))
    each = _rank_correlations(*(
        np.stack([
            np.array([of[one] for one in names])[turns[:, i]] for i, names in enumerate(recipes)
        ], axis=1)
        for of in (x, y)
    ))  # fmt: skip
    return None if np.isnan(each).any() else (float(each.min()), float(each.max()))


def _recipes(evidence: Evidence, names: Mapping[str, float] | Sequence[str]) -> list[list[str]]:
    """Networks of one recipe together, by seed."""
    found: dict[Recipe, list[str]] = {}
    for one in sorted(evidence.networks, key=lambda one: one.seed):
        if one.name in names:
            found.setdefault(one.recipe, []).append(one.name)
    return list(found.values())
