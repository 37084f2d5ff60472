"""Finding 5: a larger training budget raises clean-attacked similarity, most at the end."""

from __future__ import annotations

from itertools import pairwise

from repsim.findings.alignment import KEYS, aligned
from repsim.findings.cells import DIAGONAL, END, FINAL, START
from repsim.findings.desk import Desk, Seeds, Sides
from repsim.findings.evidence import AT, Network, same_eps
from repsim.findings.finding import Finding
from repsim.findings.number import Number
from repsim.findings.verdict import verdict

KEY = "5"
CLAIM = (
    "A larger training budget raises the similarity of clean and attacked representations under "
    "one fixed test attack, most at the end of the network."
)


def budgets(desk: Desk) -> Finding:
    """From the smallest to the largest budget of every scheme that has several.

    The last third's CKA(clean, attacked) rises, and it rises more than the first two thirds'.
    The steps between are beside, and the reason says which of them carries the rise: where
    similarity is near 1 it cannot rise.
    """
    evidence = desk.evidence
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    notes = desk.left_out()
    carried = []
    for scheme in evidence.schemes():
        sizes = evidence.budgets(scheme)
        groups = {eps: _trained(desk, scheme, eps) for eps in sizes}
        for eps, networks in groups.items():
            numbers += _similarities(desk, networks, eps, scheme)
            controls += _controls(desk, networks, eps, scheme)
        if len(sizes) < 2:
            notes.append(f"{scheme} is left out: its at networks have one budget.")
            continue
        if len(sizes) > 2:
            steps = [
                step for low, high in pairwise(sizes)
                for step in _rise(desk, scheme, groups, low, high)[:1]
            ]  # fmt: skip
            numbers += steps
            carried += _carried(scheme, steps)
        differences += _rise(desk, scheme, groups, sizes[0], sizes[-1])
        notes += [note for networks in groups.values() for note in _short(networks)]
    if not differences:
        return desk.missing(KEY, CLAIM, "at networks of one scheme trained with several eps")
    said, reason = verdict(differences)
    return desk.finding(
        KEY, CLAIM, numbers, controls, differences, notes, (said, ". ".join([reason, *carried]))
    )


def as_text(eps: float) -> str:
    """8/255 where it is a whole number of these, else the number."""
    steps = eps * 255
    return f"{round(steps)}/255" if abs(steps - round(steps)) < 1e-3 else f"{eps:g}"


def _trained(desk: Desk, scheme: str, eps: float) -> list[Network]:
    """At networks of exactly this budget; `group` would add those of an unknown one."""
    return [one for one in desk.evidence.group(scheme, AT, eps) if same_eps(one.eps, eps)]


def _similarities(
    desk: Desk, networks: list[Network], eps: float, scheme: str
) -> list[Number]:  # fmt: skip
    """CKA(clean, attacked) of the networks of one budget."""
    found = []
    for part in (DIAGONAL, END, FINAL):
        key, words, layers = KEYS[part]
        found += desk.number(
            aligned(desk, networks, part, desk.evidence.own), f"{key}_eps",
            f"CKA(clean, attacked) of networks trained at {as_text(eps)}, {words}", layers,
            scheme=scheme, scenario=AT,
        )  # fmt: skip
    return found


def _controls(desk: Desk, networks: list[Network], eps: float, scheme: str) -> list[Number]:
    """The same under noise, and within classes."""
    evidence, found = desk.evidence, []
    for part in (DIAGONAL, END, FINAL):
        key, words, layers = KEYS[part]
        found += desk.number(
            aligned(desk, networks, part, evidence.noise), f"{key}_eps_noise",
            f"CKA(clean, noise) of networks trained at {as_text(eps)}, {words}", layers,
            scheme=scheme, scenario=AT,
        )  # fmt: skip
        if desk.within is not None:
            found += desk.number(
                aligned(desk, networks, part, evidence.own, desk.within),
                f"{key}_eps_within_class",
                f"CKA(clean, attacked) within classes, trained at {as_text(eps)}, {words}",
                layers, scheme=scheme, scenario=AT,
            )  # fmt: skip
    return found


def _rise(
    desk: Desk, scheme: str, groups: dict[float, list[Network]], low: float, high: float
) -> list[Number]:
    """How much the last third rises, and how much more than the rest."""
    found = []
    steps = f"{as_text(high)} - {as_text(low)}"
    for key, what in (
        ("rise_last_third", "last third"), ("rise_most_at_end", "last third less the rest"),
    ):  # fmt: skip
        sides = {eps: _of(desk, networks, key) for eps, networks in groups.items()}
        top, bottom = sides[high], sides[low]
        if top is None or bottom is None:
            continue
        known = [
            (one.spread, eps) for eps, one in sides.items()
            if one is not None and one.spread is not None
        ]  # fmt: skip
        spread, eps = max(known, default=(None, None))
        found.append(desk.difference(
            [(1.0, top), (-1.0, bottom)], key,
            f"CKA(clean, attacked), {what}, trained at {steps}", "last third",
            scheme=scheme, scenario=steps,
            stand_in=None if spread is None or eps is None
            else (spread, f"seeds trained at {as_text(eps)}"),
        ))  # fmt: skip
    return found


def _of(desk: Desk, networks: list[Network], key: str) -> Seeds | None:
    """The last third of each network, or the last third less the rest."""
    clean, own = desk.evidence.clean, desk.evidence.own
    end = Sides(END, clean, own)
    if key == "rise_last_third":
        return desk.seeds(networks, end)
    return desk.paired(networks, end, Sides(START, clean, own))


def _carried(scheme: str, steps: list[Number]) -> list[str]:
    """Which step of the budget carries the rise, and what the others add."""
    if not steps:
        return []
    most = max(steps, key=lambda one: one.value)
    said = [f"In {scheme} most comes with the step {most.scenario}, {most.text()}"]
    said += [f"{one.scenario} adds {one.text()}, {one.outcome}" for one in steps if one is not most]
    return ["; ".join(said)]


def _short(networks: list[Network]) -> list[str]:
    """Networks whose training attack never got as far as its eps."""
    return [
        f"{one.name}: its training attack goes {one.reach * 255:.4g}/255 at most, not its eps "
        f"{as_text(one.eps)}."
        for one in networks
        if one.eps is not None and one.reach is not None and one.reach < one.eps - 1e-6
    ]
