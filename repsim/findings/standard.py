"""Finding 1: under standard training clean and attacked representations differ, most at the end."""

from __future__ import annotations

from repsim.findings import alignment
from repsim.findings.alignment import aligned
from repsim.findings.cells import DIAGONAL, END, FINAL, START
from repsim.findings.desk import Desk, Seeds
from repsim.findings.evidence import ST
from repsim.findings.finding import Finding
from repsim.findings.number import Number
from repsim.findings.quantity import constant

KEY = "1"
CLAIM = (
    "Standard training: clean and attacked representations differ, most at the end of the "
    "network, in every scheme."
)


def standard(desk: Desk) -> Finding:
    """Two differences in every scheme.

    The attack moves representations further than noise of its size does, over all layers:
    CKA(clean, noise) - CKA(clean, attacked); and they fall at the end: the first two thirds'
    CKA(clean, attacked) less the last third's.
    """
    evidence = desk.evidence
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    notes: list[str] = []
    for scheme in evidence.schemes(ST):
        networks = evidence.group(scheme, ST)
        attacked = aligned(desk, networks, DIAGONAL, evidence.own)
        noise = aligned(desk, networks, DIAGONAL, evidence.noise)
        start = aligned(desk, networks, START, evidence.own)
        end = aligned(desk, networks, END, evidence.own)
        if attacked is None or start is None or end is None:
            notes.append(f"{scheme}: its networks have no images attacked on themselves.")
            continue
        numbers += alignment.numbers(desk, networks, scheme, ST, (DIAGONAL, START, END, FINAL))
        controls += alignment.controls(desk, networks, scheme, ST)
        if noise is None:
            notes.append(f"{scheme}: no control noise; clean images themselves, CKA 1, stand in.")
        differences.append(desk.difference(
            [(1.0, noise or Seeds((constant(1.0),))), (-1.0, attacked)],
            "noise_less_attack", "CKA(clean, noise) - CKA(clean, attacked), all layers", "all",
            scheme=scheme, scenario=ST,
        ))  # fmt: skip
        # Seed by seed: the two thirds are of the same network.
        fall = Seeds(tuple(a - b for a, b in zip(start.units, end.units, strict=True)))
        differences.append(desk.difference(
            [(1.0, fall)], "fall_at_the_end",
            "CKA(clean, attacked), first two thirds - last third", "last third",
            scheme=scheme, scenario=ST,
        ))  # fmt: skip
        if desk.within is not None:
            controls += _within(desk, scheme)
    if not differences:
        return desk.missing(KEY, CLAIM, "st networks compared clean and under their own attack")
    controls += alignment.untrained(desk)
    return desk.finding(KEY, CLAIM, numbers, controls, differences, notes)


def _within(desk: Desk, scheme: str) -> list[Number]:
    """The fall from noise to attack within classes: what flipped labels alone do not explain."""
    evidence = desk.evidence
    networks = evidence.group(scheme, ST)
    noise = aligned(desk, networks, DIAGONAL, evidence.noise, desk.within)
    attacked = aligned(desk, networks, DIAGONAL, evidence.own, desk.within)
    if noise is None or attacked is None:
        return []
    return desk.number(
        noise.mean - attacked.mean, "noise_less_attack_within_class",
        "CKA(clean, noise) - CKA(clean, attacked) within classes, all layers", "all",
        scheme=scheme, scenario=ST, difference=True,
    )  # fmt: skip
