"""Clean against attacked images inside one network: numbers and controls of findings 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence

from repsim.findings.cells import DIAGONAL, END, FINAL, START, Similarities
from repsim.findings.desk import Desk, Seeds, Sides
from repsim.findings.evidence import AT, FULL, PARTIAL, ST, Network
from repsim.findings.number import Number

KEYS = {
    DIAGONAL: ("alignment_mean", "mean over all layers", "all"),
    START: ("alignment_first_two_thirds", "mean over the first two thirds", "first two thirds"),
    END: ("alignment_last_third", "mean over the last third", "last third"),
    FINAL: ("alignment_final", "final layer", "final"),
}
TRAINED = {ST: "standard", AT: "adversarially trained", FULL: "full-at", PARTIAL: "partial-at"}


def aligned(
    desk: Desk, networks: Sequence[Network], part: str, condition: str,
    source: Similarities | None = None,
) -> Seeds | None:  # fmt: skip
    """A part of the diagonal of CKA(clean, condition) of each network."""
    return desk.seeds(networks, Sides(part, desk.evidence.clean, condition), source)


def numbers(
    desk: Desk, networks: Sequence[Network], scheme: str, scenario: str, parts: Sequence[str]
) -> list[Number]:
    """CKA(clean, own attack) of a recipe's networks, for each part."""
    found = []
    for part in parts:
        key, words, layers = KEYS[part]
        found += desk.number(
            aligned(desk, networks, part, desk.evidence.own), key,
            f"CKA(clean, attacked) of {TRAINED[scenario]} networks, {words}", layers,
            scheme=scheme, scenario=scenario,
        )  # fmt: skip
    return found


def controls(desk: Desk, networks: Sequence[Network], scheme: str, scenario: str) -> list[Number]:
    """The same under noise, between two seeds, and within classes."""
    evidence, found = desk.evidence, []
    who = f"{TRAINED[scenario]} networks"
    for part in (DIAGONAL, END):
        key, words, layers = KEYS[part]
        found += desk.number(
            aligned(desk, networks, part, evidence.noise), f"{key}_noise",
            f"CKA(clean, noise of the same size) of {who}, {words}", layers,
            scheme=scheme, scenario=scenario,
        )  # fmt: skip
        found += desk.number(
            desk.pairs(networks, networks, part, evidence.clean), f"{key}_two_seeds",
            f"CKA(clean, clean) between two seeds of {who}, same layers, {words}", layers,
            scheme=scheme, scenario=scenario,
        )  # fmt: skip
        if desk.within is not None:
            found += desk.number(
                aligned(desk, networks, part, evidence.own, desk.within), f"{key}_within_class",
                f"CKA(clean, attacked) within classes of {who}, {words}", layers,
                scheme=scheme, scenario=scenario,
            )  # fmt: skip
    return found


def untrained(desk: Desk) -> list[Number]:
    """CKA(clean, attacked) and CKA(clean, noise) of networks that were never trained."""
    evidence, found = desk.evidence, []
    for part in (DIAGONAL, END):
        key, words, layers = KEYS[part]
        for condition, word, also in (
            (evidence.own, "attacked", ""), (evidence.noise, "noise of the same size", "_noise"),
        ):  # fmt: skip
            found += desk.number(
                aligned(desk, evidence.untrained(), part, condition), f"{key}{also}_untrained",
                f"CKA(clean, {word}) of untrained networks, {words}", layers,
                scenario="untrained",
            )  # fmt: skip
    return found
