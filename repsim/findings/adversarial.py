"""Finding 2: adversarial training makes clean and attacked representations alike."""

from __future__ import annotations

from repsim.findings import alignment
from repsim.findings.alignment import KEYS, aligned
from repsim.findings.cells import DIAGONAL, END, FINAL, Similarities
from repsim.findings.desk import Desk, Sides
from repsim.findings.evidence import AT, ST
from repsim.findings.finding import Finding
from repsim.findings.number import Number

KEY = "2"
CLAIM = "Adversarial training makes clean and attacked representations alike in every scheme."


def adversarial(desk: Desk) -> Finding:
    """CKA(clean, own attack) of at less that of st, over all layers and over the last third."""
    evidence = desk.evidence
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    for scheme in evidence.schemes(ST, AT):
        ours, theirs = evidence.group(scheme, AT), evidence.group(scheme, ST)
        for part in (DIAGONAL, END):
            key, words, layers = KEYS[part]
            at = aligned(desk, ours, part, evidence.own)
            st = aligned(desk, theirs, part, evidence.own)
            if at is None or st is None:
                continue
            differences.append(desk.difference(
                [(1.0, at), (-1.0, st)], f"{key}_at_less_st",
                f"CKA(clean, attacked), at - st, {words}", layers,
                scheme=scheme, scenario="at - st",
            ))  # fmt: skip
            controls += _gain(
                desk, scheme, part, evidence.noise, f"{key}_noise_at_less_st",
                "CKA(clean, noise of the same size)", desk.similarity,
            )  # fmt: skip
            if desk.within is not None:
                controls += _gain(
                    desk, scheme, part, evidence.own, f"{key}_within_class_at_less_st",
                    "CKA(clean, attacked) within classes", desk.within,
                )  # fmt: skip
        for scenario, networks in ((ST, theirs), (AT, ours)):
            numbers += alignment.numbers(desk, networks, scheme, scenario, (DIAGONAL, END, FINAL))
            controls += alignment.controls(desk, networks, scheme, scenario)
        numbers += _left(desk, scheme)
    if not differences:
        return desk.missing(KEY, CLAIM, "an st and an at network of one scheme, both attacked")
    controls += alignment.untrained(desk)
    return desk.finding(KEY, CLAIM, numbers, controls, differences, desk.left_out(ST, AT))


def _left(desk: Desk, scheme: str) -> list[Number]:
    """How far an at network's attacked images still are from its noisy ones; 0 is alike."""
    evidence = desk.evidence
    noise, attacked = (
        Sides(END, evidence.clean, condition) for condition in (evidence.noise, evidence.own)
    )
    left = desk.paired(evidence.group(scheme, AT), noise, attacked)
    return desk.number(
        left, "noise_less_attack_at",
        "What is left in at networks: CKA(clean, noise) - CKA(clean, attacked), last third",
        "last third", scheme=scheme, scenario=AT, difference=True,
    )  # fmt: skip


def _gain(
    desk: Desk, scheme: str, part: str, condition: str, key: str, what: str, source: Similarities
) -> list[Number]:
    """At less st of a control."""
    evidence = desk.evidence
    at = aligned(desk, evidence.group(scheme, AT), part, condition, source)
    st = aligned(desk, evidence.group(scheme, ST), part, condition, source)
    if at is None or st is None:
        return []
    return desk.number(
        at.mean - st.mean, key, f"{what}, at - st, {KEYS[part][1]}", KEYS[part][2],
        scheme=scheme, scenario="at - st", difference=True,
    )  # fmt: skip
