"""Finding 7: full-at against at: the representations of cl change, those of sl and scl hardly."""

from __future__ import annotations

from dataclasses import replace

from repsim.findings.cells import ALL_PAIRS, DIAGONAL, END, END_BLOCK, FINAL
from repsim.findings.cross_scheme import PARTS, readings
from repsim.findings.desk import Desk, Seeds
from repsim.findings.evidence import AT, FULL
from repsim.findings.finding import Finding
from repsim.findings.long_range import far
from repsim.findings.number import Number

KEY = "7"
CLAIM = (
    "Full-at against at: training end to end changes the representations of cl, and hardly those "
    "of sl and scl."
)
CHANGED = "cl"


def full_at(desk: Desk) -> Finding:
    """How much more cl changes than each other scheme, in two ways.

    By the similarity of an at network to the full-at network, same layers, clean images (other
    scheme's less cl's), and by how far long-range similarity on clean images moves, up or down
    (cl's less the other's). Which way it moves is a number of its own: the paper's text says that
    cl's rises, its data that it falls.
    """
    evidence = desk.evidence
    schemes = evidence.schemes(AT, FULL)
    others = [scheme for scheme in schemes if scheme != CHANGED]
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    for scheme in schemes:
        numbers += _numbers(desk, scheme)
        controls += _controls(desk, scheme)
    notes = [_moved(one, desk.margin) for one in numbers if one.key == "long_range_full_less_at"]
    if CHANGED not in schemes or not others:
        none = desk.missing(
            KEY, CLAIM, f"at and full-at networks of {CHANGED} and of another scheme; both are "
            f"there for {', '.join(schemes) or 'none'}",
        )  # fmt: skip
        return replace(none, numbers=numbers, controls=controls, notes=notes)
    for other in others:
        differences += _alike(desk, other) + _move(desk, other)
    if not differences:
        return desk.missing(KEY, CLAIM, "at and full-at networks with the same layers")
    return desk.finding(KEY, CLAIM, numbers, controls, differences, notes)


def _similar(desk: Desk, scheme: str, part: str, condition: str) -> Seeds | None:
    """CKA between at and full-at networks: those of one seed, of which one begins as the other."""
    evidence = desk.evidence
    at, full = evidence.group(scheme, AT), evidence.group(scheme, FULL)
    same = [(a, b) for a in at for b in full if a.seed == b.seed]
    return Seeds.of([
        desk.similarity.find(part, f"{a.name}:{condition}", f"{b.name}:{condition}")
        for a, b in same or [(a, b) for a in at for b in full]
    ])  # fmt: skip


def _numbers(desk: Desk, scheme: str) -> list[Number]:
    evidence, found = desk.evidence, []
    at, full = evidence.group(scheme, AT), evidence.group(scheme, FULL)
    for reading in readings(evidence):
        for part, (key, words) in PARTS.items():
            found += desk.number(
                _similar(desk, scheme, part, reading.condition), f"{key}_{reading.name}_at_full_at",
                f"CKA between at and full-at of one seed, {reading.words}, {words}", part,
                scheme=scheme, scenario="at & full-at",
            )  # fmt: skip
    for condition, word in ((evidence.clean, "clean"), (evidence.own, "attacked")):
        sides = {scenario: far(desk, group, condition) for scenario, group in
                 ((AT, at), (FULL, full))}  # fmt: skip
        for scenario, seeds in sides.items():
            found += desk.number(
                seeds, "long_range", f"long-range similarity of {scenario} networks, {word} images",
                "long range", scheme=scheme, scenario=scenario,
            )  # fmt: skip
        first, last = sides[AT], sides[FULL]
        if first is not None and last is not None:
            found += desk.number(
                last.mean - first.mean,
                f"long_range_{'' if word == 'clean' else 'attacked_'}full_less_at",
                f"long-range similarity, {word} images, full-at - at", "long range",
                scheme=scheme, scenario="full-at - at", difference=True,
            )  # fmt: skip
    return found


def _controls(desk: Desk, scheme: str) -> list[Number]:
    """Two seeds of at, which differ by nothing but chance; and noise."""
    evidence, found = desk.evidence, []
    group = evidence.group(scheme, AT)
    for part in (ALL_PAIRS, DIAGONAL, END_BLOCK, END, FINAL):
        key, words = PARTS[part]
        found += desk.number(
            desk.pairs(group, group, part, evidence.clean), f"{key}_clean_two_seeds",
            f"CKA between two seeds of at networks, clean images, {words}", part,
            scheme=scheme, scenario=AT,
        )  # fmt: skip
        found += desk.number(
            _similar(desk, scheme, part, evidence.noise), f"{key}_noise_at_full_at",
            f"CKA between at and full-at of one seed, noise of the attack's size, {words}", part,
            scheme=scheme, scenario="at & full-at",
        )  # fmt: skip
    return found


def _alike(desk: Desk, other: str) -> list[Number]:
    """The other scheme's at and full-at networks are more alike than cl's."""
    evidence = desk.evidence
    theirs, ours = (_similar(desk, name, DIAGONAL, evidence.clean) for name in (other, CHANGED))
    if theirs is None or ours is None:
        return []
    # With one seed each: by how much two seeds of at networks are unlike one another.
    apart = []
    for scheme in (other, CHANGED):
        group = evidence.group(scheme, AT)
        seeds = desk.pairs(group, group, DIAGONAL, evidence.clean)
        apart += [] if seeds is None else [1 - one.value for one in seeds.units]
    return [desk.difference(
        [(1.0, theirs), (-1.0, ours)], "at_full_at_alike",
        f"CKA between at and full-at, same layers, clean images, less that of {CHANGED}", DIAGONAL,
        scheme=other, scenario="at & full-at",
        stand_in=(max(apart), "1 - CKA between two seeds of at networks") if apart else None,
    )]  # fmt: skip


def _move(desk: Desk, other: str) -> list[Number]:
    """cl's long-range similarity moves further than the other scheme's; the signs are those found.

    A size has no sign, so that a move of nothing but noise counts as a small one, not as none.
    """
    evidence = desk.evidence
    parts: list[tuple[float, Seeds]] = []
    papers: list[float | None] = []
    for factor, scheme in ((1.0, CHANGED), (-1.0, other)):
        at, full = (far(desk, evidence.group(scheme, name), evidence.clean) for name in (AT, FULL))
        if at is None or full is None:
            return []
        sign = 1.0 if full.mean.value >= at.mean.value else -1.0
        parts += [(factor * sign, full), (-factor * sign, at)]
        papers.append(desk.paper.value(full.mean - at.mean))
    cl, theirs = papers
    return [desk.difference(
        parts, "long_range_moves",
        f"|long-range similarity, full-at - at|, clean images, that of {CHANGED} less",
        "long range",
        scheme=other, scenario="full-at - at",
        paper=None if cl is None or theirs is None else abs(cl) - abs(theirs),
    )]  # fmt: skip


def _moved(one: Number, margin: float) -> str:
    """Whether a scheme's long-range similarity moves, and which way."""
    if one.lower is None or one.upper is None:
        word = "no interval"
    elif -margin <= one.lower and one.upper <= margin:
        word = "hardly moves"
    elif one.lower > 0 or one.upper < 0:
        word = "rises" if one.value > 0 else "falls"
    else:
        word = "is not resolved"
    paper = "" if one.paper is None else f"; in the paper's data {one.paper:+.3f}"
    return f"Long-range similarity from at to full-at in {one.scheme}: {one.text()}, {word}{paper}."
