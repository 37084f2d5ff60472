"""Finding 4: on attacked inputs, at networks of different schemes are more alike than st ones.

Three readings, which must not be confused: clean images; each network on images attacked on
itself (the paper's: the two see different images, and any two networks that attacks move far drift
apart); one attacked set that all networks see. Two seeds of one scheme go through the same: what
they gain, too, is not schemes that converge.

Without the shared set the claim is not resolved at best: on own attacks most of the gain may be
that standard networks see different images. And what at gains over st under noise of the attack's
size is not the attack's: the reason says how much of the gain that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from repsim.findings.cells import ALL_PAIRS, DIAGONAL, END, END_BLOCK, FINAL, Similarities
from repsim.findings.desk import Desk, Seeds
from repsim.findings.evidence import AT, ST, Evidence
from repsim.findings.finding import HOLDS, OPEN, Finding
from repsim.findings.number import Number
from repsim.findings.quantity import Quantity, less, mean
from repsim.findings.verdict import verdict

KEY = "4"
CLAIM = (
    "On attacked inputs, adversarially trained networks of different schemes are more alike than "
    "standard ones (universality)."
)
PARTS = {
    ALL_PAIRS: ("cross_mean", "all pairs of layers"),
    DIAGONAL: ("cross_diagonal", "same layers"),
    END_BLOCK: ("cross_last_third_block", "all pairs of the last third"),
    END: ("cross_last_third_diagonal", "same layers of the last third"),
    FINAL: ("cross_final", "final layer"),
}
DECIDE = (ALL_PAIRS, END_BLOCK)


class Reading(NamedTuple):
    """Which images two networks see."""

    name: str
    condition: str
    words: str


def readings(evidence: Evidence) -> list[Reading]:
    """The three, as far as they are there; the attacked ones last."""
    found = [
        Reading("clean", evidence.clean, "clean images"),
        Reading("own", evidence.own, "each on its own attacked images"),
    ]
    if evidence.shared is not None:
        found.append(Reading("shared", evidence.shared, "one shared attacked set"))
    return found


def cross_scheme(desk: Desk) -> Finding:
    """At less st for every pair of schemes, on own attacks and on the shared attacked set.

    The average over all pairs of layers and that over the last third decide; the diagonal and
    the final layer stand beside them, and what at gains beyond what it gains under noise.
    """
    evidence = desk.evidence
    schemes = evidence.schemes(ST, AT)
    beyond: list[Number] = []
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    notes = desk.left_out(ST, AT)
    for reading in readings(evidence):
        for part in PARTS:
            gains = []
            for one, other in combinations(schemes, 2):
                at, st = (_between(desk, one, other, name, part, reading) for name in (AT, ST))
                name = f"{one} & {other}"
                numbers += _each(desk, at, st, part, reading, name)
                if at is None or st is None:
                    continue
                gains.append(at.mean - st.mean)
                key, words = PARTS[part]
                made = desk.difference(
                    [(1.0, at), (-1.0, st)], f"{key}_{reading.name}_at_less_st",
                    f"CKA between schemes, {reading.words}, {words}, at - st", part,
                    scheme=name, scenario="at - st",
                )  # fmt: skip
                decides = part in DECIDE and reading.name != "clean"
                (differences if decides else numbers).append(made)
                if reading.name != "clean":
                    beyond += _beyond_noise(desk, one, other, part, reading)
            controls += _seeds(desk, schemes, gains, part, reading)
    if not differences:
        return desk.missing(KEY, CLAIM, "st and at networks of two schemes, attacked")
    said, reason = verdict(differences)
    shares = _shares(differences, beyond)
    if shares:
        reason += f"; of these gains {_range(shares)} is there under noise of the same size, too"
    if alone := _own_only(differences):
        notes.append(f"No shared attacked set{alone}: read on own attacks only.")
        if said == HOLDS:
            said = OPEN
            reason = (
                f"No shared attacked set{alone}, and on own attacks alone standard networks may be "
                "unlike because they see different images, so that what is gained need not be "
                f"convergence. {reason}"
            )
    notes += _noise(desk, differences, beyond) + _final(numbers)
    controls += _others(desk, schemes)
    notes += _beyond_seeds(controls)
    return desk.finding(KEY, CLAIM, beyond + numbers, controls, differences, notes, (said, reason))


def _between(
    desk: Desk, one: str, other: str, scenario: str, part: str, reading: Reading,
    source: Similarities | None = None,
) -> Seeds | None:  # fmt: skip
    """CKA between every network of one scheme and every one of the other."""
    these, those = (desk.evidence.group(scheme, scenario) for scheme in (one, other))
    return desk.pairs(these, those, part, reading.condition, source)


def _beyond_noise(desk: Desk, one: str, other: str, part: str, reading: Reading) -> list[Number]:
    """What at gains over st on attacked images less what it gains under noise of their size.

    Pair of networks by pair of networks, and replicate by replicate.
    """
    evidence = desk.evidence
    sides = {}
    for scenario in (AT, ST):
        these, those = (evidence.group(scheme, scenario) for scheme in (one, other))
        attacked, noise = (
            desk.between(these, those, part, condition)
            for condition in (reading.condition, evidence.noise)
        )
        sides[scenario] = Seeds.of([less(a, b) for a, b in zip(attacked, noise, strict=True)])
    at, st = sides[AT], sides[ST]
    if at is None or st is None:
        return []
    key, words = PARTS[part]
    return [desk.difference(
        [(1.0, at), (-1.0, st)], f"{key}_{reading.name}_beyond_noise",
        f"CKA between schemes, {reading.words} less noise of the same size, {words}, at - st", part,
        scheme=f"{one} & {other}", scenario="at - st",
    )]  # fmt: skip


def _own_only(differences: Sequence[Number]) -> str:
    """Where there is no shared attacked set: " in" which pairs of schemes, or nowhere at all."""
    shared = {one.scheme for one in differences if one.key.endswith("_shared_at_less_st")}
    alone = list(dict.fromkeys(one.scheme for one in differences if one.scheme not in shared))
    return f" in {', '.join(alone)}" if alone else ""


def _shares(gains: Sequence[Number], beyond: Sequence[Number]) -> list[float]:
    """The part of each gain that is there under noise, too; of gains that are above 0."""
    of = {(one.key, one.scheme): one.value for one in beyond}
    return [
        1 - of[key] / one.value for one in gains
        if (key := (one.key.replace("_at_less_st", "_beyond_noise"), one.scheme)) in of
        and one.value > 0 and (one.lower is None or one.lower > 0)
    ]  # fmt: skip


def _range(shares: Sequence[float]) -> str:
    """59 to 80%."""
    least, most = (f"{100 * one:.0f}" for one in (min(shares), max(shares)))
    return f"{least}%" if least == most else f"{least} to {most}%"


def _noise(desk: Desk, gains: Sequence[Number], beyond: Sequence[Number]) -> list[str]:
    """How much of the gains is there under noise, reading by reading and part by part."""
    if not beyond:
        return [f"No control {desk.evidence.noise}: how much of the gain is the attack's is open."]
    told = []
    for key in dict.fromkeys(one.key for one in gains):
        these = [one for one in gains if one.key == key]
        left = [one for one in beyond if one.key == key.replace("_at_less_st", "_beyond_noise")]
        if not left:
            continue
        shares = _shares(these, left)
        start = f"{_range(shares)} of it is there under noise, too; " if shares else ""
        each = ", ".join(f"{one.scheme} {one.text()}" for one in left)
        told.append(f"{these[0].label}: {start}beyond noise: {each}.")
    return told


def _each(
    desk: Desk, at: Seeds | None, st: Seeds | None, part: str, reading: Reading, name: str
) -> list[Number]:
    """The similarity of at networks and that of st networks."""
    key, words = PARTS[part]
    found = []
    for scenario, seeds in ((ST, st), (AT, at)):
        found += desk.number(
            seeds, f"{key}_{reading.name}",
            f"CKA between schemes, {scenario} networks, {reading.words}, {words}", part,
            scheme=name, scenario=scenario,
        )  # fmt: skip
    return found


def _seeds(
    desk: Desk, schemes: Sequence[str], gains: list[Quantity], part: str, reading: Reading
) -> list[Number]:
    """Two seeds of one scheme: st, at, what at gains, and what schemes gain beyond that."""
    evidence, found, theirs = desk.evidence, [], []
    key, words = PARTS[part]
    for scheme in schemes:
        seeds = {}
        for scenario in (ST, AT):
            group = evidence.group(scheme, scenario)
            seeds[scenario] = desk.pairs(group, group, part, reading.condition)
            found += desk.number(
                seeds[scenario], f"{key}_{reading.name}_two_seeds",
                f"CKA between two seeds, {scenario} networks, {reading.words}, {words}", part,
                scheme=scheme, scenario=scenario,
            )  # fmt: skip
        at, st = seeds[AT], seeds[ST]
        if at is None or st is None:
            continue
        theirs.append(at.mean - st.mean)
        found += desk.number(
            theirs[-1], f"{key}_{reading.name}_two_seeds_at_less_st",
            f"CKA between two seeds, {reading.words}, {words}, at - st", part,
            scheme=scheme, scenario="at - st", difference=True,
        )  # fmt: skip
    if gains and theirs:
        found += desk.number(
            mean(gains) - mean(theirs), f"{key}_{reading.name}_beyond_two_seeds",
            f"What schemes gain beyond two seeds of one scheme, {reading.words}, {words}", part,
            scenario="at - st", difference=True,
        )  # fmt: skip
    return found


def _others(desk: Desk, schemes: Sequence[str]) -> list[Number]:
    """Noise of the attack's size, within classes, and untrained networks, over all pairs."""
    evidence, found = desk.evidence, []
    noise = Reading("noise", evidence.noise, "noise of the same size")
    for one, other in combinations(schemes, 2):
        for reading, source, also in (
            (noise, None, ""),
            *((read, desk.within, "_within_class") for read in readings(evidence) if desk.within),
        ):
            for part in DECIDE:
                at, st = (
                    _between(desk, one, other, name, part, reading, source) for name in (AT, ST)
                )
                if at is None or st is None:
                    continue
                key, words = PARTS[part]
                where = f"{reading.words}{', within classes' if also else ''}"
                found += desk.number(
                    at.mean - st.mean, f"{key}_{reading.name}{also}_at_less_st",
                    f"CKA between schemes, {where}, {words}, at - st", part,
                    scheme=f"{one} & {other}", scenario="at - st", difference=True,
                )  # fmt: skip
    for reading in readings(evidence):
        for scheme in schemes:
            for scenario in (ST, AT):
                found += desk.number(
                    desk.pairs(
                        evidence.untrained(), evidence.group(scheme, scenario), ALL_PAIRS,
                        reading.condition,
                    ),
                    f"cross_mean_{reading.name}_untrained",
                    f"CKA of an untrained network to {scenario} networks, {reading.words}, "
                    "all pairs of layers", ALL_PAIRS, scheme=scheme, scenario=scenario,
                )  # fmt: skip
    return found


def _final(numbers: Sequence[Number]) -> list[str]:
    """How alike the final layers of at networks are."""
    found = [
        one for one in numbers if one.key in ("cross_final_own", "cross_final_shared")
        and one.scenario == AT
    ]  # fmt: skip
    told = []
    for key in dict.fromkeys(one.key for one in found):
        same = [f"{one.scheme} {one.text()}" for one in found if one.key == key]
        told.append(
            f"Final layers of at networks, {key.removeprefix('cross_final_')}: {', '.join(same)}."
        )
    return told


def _beyond_seeds(controls: Sequence[Number]) -> list[str]:
    """What schemes gain beyond seeds, over all pairs."""
    return [
        f"{one.label}: {one.text()}." for one in controls
        if one.key.startswith("cross_mean") and one.key.endswith("_beyond_two_seeds")
    ]  # fmt: skip
