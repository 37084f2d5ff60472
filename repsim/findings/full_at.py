"""Finding 7: full-at against at: the representations of cl change, those of sl and scl hardly.

A full-at network begins as the at network of its seed, so it is held against that one. How far
apart the two are is held against how far apart two seeds of at are, which differ by chance alone:

    CKA(two at seeds) - CKA(at, full-at)

is above 0 where full-at changes more than another seed does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repsim.findings.cells import ALL_PAIRS, DIAGONAL, END, END_BLOCK, FINAL, LONG_RANGE
from repsim.findings.cross_scheme import PARTS, readings
from repsim.findings.desk import Desk, Seeds, Sides
from repsim.findings.evidence import AT, FULL, Network
from repsim.findings.finding import Finding
from repsim.findings.long_range import far
from repsim.findings.number import Number
from repsim.findings.quantity import less
from repsim.findings.verdict import hardly, joint, outcome, verdict

KEY = "7"
CLAIM = (
    "Full-at against at: training end to end changes the representations of cl, and hardly those "
    "of sl and scl."
)
CHANGED = "cl"


def full_at(desk: Desk) -> Finding:
    """CKA(two at seeds) - CKA(at, full-at), same layers, clean images, in every scheme.

    The claim holds where it is above 0 for cl, and below 0 or within the margin for the others. By
    how much more cl changes than they do is beside, also by how far long-range similarity moves, up
    or down: the paper's text says that cl's rises, its data that it falls.
    """
    evidence = desk.evidence
    schemes = evidence.schemes(AT, FULL)
    others = [scheme for scheme in schemes if scheme != CHANGED]
    numbers: list[Number] = []
    controls: list[Number] = []
    for other in others if CHANGED in schemes else ():
        numbers += _alike(desk, other) + _move(desk, other)
    for scheme in schemes:
        numbers += _numbers(desk, scheme)
        controls += _controls(desk, scheme)
    notes = [_moved(one, desk.margin) for one in numbers if one.key == "long_range_full_less_at"]
    notes += desk.left_out()
    changed = _change(desk, CHANGED) if CHANGED in schemes else []
    same = [one for other in others for one in _change(desk, other)]
    notes += [
        f"{scheme} is left out: it has no two seeds of at networks to hold full-at against."
        for scheme in schemes if scheme not in {one.scheme for one in changed + same}
    ]  # fmt: skip
    if any(len(evidence.group(one.scheme, AT)) == 2 for one in changed + same):
        notes.append(
            "How far chance takes two seeds apart is in these differences; how much that varies is "
            "not known from one pair of them."
        )
    if not changed or not same:
        none = desk.missing(
            KEY, CLAIM, f"full-at and two seeds of at networks of {CHANGED} and of another scheme; "
            f"at and full-at are there for {', '.join(schemes) or 'none'}",
        )  # fmt: skip
        return replace(none, numbers=numbers, controls=controls, notes=notes)
    return desk.finding(
        KEY, CLAIM, numbers, controls, changed + same, notes, _judged(changed, same)
    )


def _judged(changed: list[Number], same: list[Number]) -> tuple[str, str]:
    """cl changes, and the others hardly: two parts."""
    held = {
        f"{_schemes(changed)} changes": "; ".join(f"{one.label} = {one.text()}" for one in changed),
        f"{_schemes(same)} hardly change": "below 0 or within the margin: " + ", ".join(
            f"{one.scheme} {one.text()}" for one in same
        ),
    }  # fmt: skip
    both = zip(held.items(), (changed, same), strict=True)
    return joint({name: verdict(numbers, why) for (name, why), numbers in both})


def _schemes(numbers: Sequence[Number]) -> str:
    return " and ".join(one.scheme for one in numbers)


def _matched(desk: Desk, scheme: str) -> list[tuple[Network, Network]]:
    """(at, full-at) of one seed, of which one begins as the other; all where no seed is shared."""
    at, full = (desk.evidence.group(scheme, name) for name in (AT, FULL))
    everything = [(a, b) for a in at for b in full]
    return [(a, b) for a, b in everything if a.seed == b.seed] or everything


def _similar(desk: Desk, scheme: str, part: str, condition: str) -> Seeds | None:
    """CKA between at and full-at networks."""
    return Seeds.of([
        desk.similarity.find(part, f"{a.name}:{condition}", f"{b.name}:{condition}")
        for a, b in _matched(desk, scheme)
    ])  # fmt: skip


def _far_moves(desk: Desk, scheme: str, condition: str) -> Seeds | None:
    """Long-range similarity of full-at networks less that of the at networks they begin as."""
    sides = Sides(LONG_RANGE, condition, condition)
    both = _matched(desk, scheme)
    at, full = (desk.each([pair[i] for pair in both], sides) for i in (0, 1))
    return Seeds.of([less(b, a) for a, b in zip(at, full, strict=True)])


def _change(desk: Desk, scheme: str) -> list[Number]:
    """CKA(two at seeds) - CKA(at, full-at), with what it says to the claim."""
    evidence = desk.evidence
    group = evidence.group(scheme, AT)
    seeds = desk.pairs(group, group, DIAGONAL, evidence.clean)
    full = _similar(desk, scheme, DIAGONAL, evidence.clean)
    if seeds is None or full is None:
        return []
    made = desk.difference(
        [(1.0, seeds), (-1.0, full)], "full_at_beyond_two_seeds",
        "CKA(two seeds of at) - CKA(at, full-at), same layers, clean images", DIAGONAL,
        scheme=scheme, scenario="at & full-at",
    )  # fmt: skip
    if scheme != CHANGED:
        return [replace(made, outcome=hardly(made.lower, made.upper, desk.margin))]
    # The spread of seeds is in the difference; where there is more of it, it counts as everywhere.
    spread = made.spread or 0.0
    return [replace(made, outcome=outcome(made.value, made.lower, made.upper, spread, desk.margin))]


def _numbers(desk: Desk, scheme: str) -> list[Number]:
    evidence, found = desk.evidence, []
    for reading in readings(evidence):
        for part, (key, words) in PARTS.items():
            found += desk.number(
                _similar(desk, scheme, part, reading.condition), f"{key}_{reading.name}_at_full_at",
                f"CKA between at and full-at of one seed, {reading.words}, {words}", part,
                scheme=scheme, scenario="at & full-at",
            )  # fmt: skip
    for condition, word in ((evidence.clean, "clean"), (evidence.own, "attacked")):
        for scenario in (AT, FULL):
            found += desk.number(
                far(desk, evidence.group(scheme, scenario), condition), "long_range",
                f"long-range similarity of {scenario} networks, {word} images", "long range",
                scheme=scheme, scenario=scenario,
            )  # fmt: skip
        found += desk.number(
            _far_moves(desk, scheme, condition),
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
    theirs, ours = (
        _similar(desk, name, DIAGONAL, desk.evidence.clean) for name in (other, CHANGED)
    )
    if theirs is None or ours is None:
        return []
    return [desk.difference(
        [(1.0, theirs), (-1.0, ours)], "at_full_at_alike",
        f"CKA between at and full-at, same layers, clean images, less that of {CHANGED}", DIAGONAL,
        scheme=other, scenario="at & full-at",
    )]  # fmt: skip


def _move(desk: Desk, other: str) -> list[Number]:
    """cl's long-range similarity moves further than the other scheme's; the signs are those found.

    A size has no sign, so that a move of nothing but noise counts as a small one, not as none.
    """
    parts: list[tuple[float, Seeds]] = []
    papers: list[float | None] = []
    for factor, scheme in ((1.0, CHANGED), (-1.0, other)):
        moves = _far_moves(desk, scheme, desk.evidence.clean)
        if moves is None:
            return []
        parts.append((factor if moves.mean.value >= 0 else -factor, moves))
        papers.append(desk.paper.value(moves.mean))
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
