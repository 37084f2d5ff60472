"""Finding 1: under standard training clean and attacked representations differ, most at the end."""

from __future__ import annotations

from repsim.findings import alignment
from repsim.findings.cells import DIAGONAL, END, FINAL, START
from repsim.findings.desk import Desk, Seeds, Sides
from repsim.findings.evidence import ST, Network
from repsim.findings.finding import Finding
from repsim.findings.number import Number
from repsim.findings.quantity import constant, known, less

KEY = "1"
CLAIM = (
    "Standard training: clean and attacked representations differ, most at the end of the "
    "network, in every scheme."
)


def standard(desk: Desk) -> Finding:
    """Two differences in every scheme.

    The attack moves representations further than noise of its size does, over all layers:
    CKA(clean, noise) - CKA(clean, attacked); and they fall at the end: the first two thirds'
    CKA(clean, attacked) less the last third's. Both network by network, so that the spread over
    seeds is that of the difference.
    """
    evidence = desk.evidence
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    notes = desk.left_out(ST)
    for scheme in evidence.schemes(ST):
        networks = evidence.group(scheme, ST)
        moved = _moved(desk, networks, notes, scheme)
        start, end = (Sides(part, evidence.clean, evidence.own) for part in (START, END))
        fall = desk.paired(networks, start, end)
        if moved is None or fall is None:
            notes.append(f"{scheme}: its networks have no images attacked on themselves.")
            continue
        numbers += alignment.numbers(desk, networks, scheme, ST, (DIAGONAL, START, END, FINAL))
        controls += alignment.controls(desk, networks, scheme, ST)
        differences.append(desk.difference(
            [(1.0, moved)], "noise_less_attack",
            "CKA(clean, noise) - CKA(clean, attacked), all layers", "all",
            scheme=scheme, scenario=ST,
        ))  # fmt: skip
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


def _moved(desk: Desk, networks: list[Network], notes: list[str], scheme: str) -> Seeds | None:
    """How much further the attack moves each network than noise of its size."""
    evidence = desk.evidence
    attacked = desk.each(networks, Sides(DIAGONAL, evidence.clean, evidence.own))
    noise = desk.each(networks, Sides(DIAGONAL, evidence.clean, evidence.noise))
    if not known(noise) and known(attacked):
        notes.append(f"{scheme}: no control noise; clean images themselves, CKA 1, stand in.")
        noise = [constant(1.0) for _ in networks]
    return Seeds.of([less(a, b) for a, b in zip(noise, attacked, strict=True)])


def _within(desk: Desk, scheme: str) -> list[Number]:
    """The fall from noise to attack within classes: what flipped labels alone do not explain."""
    evidence = desk.evidence
    clean = evidence.clean
    moved = desk.paired(
        evidence.group(scheme, ST), Sides(DIAGONAL, clean, evidence.noise),
        Sides(DIAGONAL, clean, evidence.own), desk.within,
    )  # fmt: skip
    return desk.number(
        moved, "noise_less_attack_within_class",
        "CKA(clean, noise) - CKA(clean, attacked) within classes, all layers", "all",
        scheme=scheme, scenario=ST, difference=True,
    )  # fmt: skip
