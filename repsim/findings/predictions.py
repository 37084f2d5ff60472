"""Finding 8: do predictions and probes of different schemes converge, too?

The counter-claim (Klabunde, Caspari and Lemmerich 2025, arXiv 2510.19427): representations of
robust networks may be alike, their predictions are not, and what differs is the classifier at the
end. So predictions stand beside probes, which are classifiers trained anew.

Two networks that are right agree, and two of accuracies p and q agree on at most 1 - |p - q| of the
images. So what decides is how often they say the same of the images that both get wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from repsim.findings.agreements import (
    ACCURACY,
    KAPPA,
    PREDICTION,
    PROBE,
    PROBED,
    WRONG,
    Predictions,
)
from repsim.findings.cross_scheme import Reading, readings
from repsim.findings.desk import Desk, Seeds, Sides
from repsim.findings.evidence import AT, ST
from repsim.findings.finding import Finding
from repsim.findings.number import Number
from repsim.findings.quantity import Quantity, less, mean
from repsim.findings.verdict import TOO_FEW

KEY = "8"
CLAIM = (
    "On attacked inputs the predictions and the probes of adversarially trained networks of "
    "different schemes agree more than those of standard ones: functions converge, too."
)
LEAST = 50  # images that both get wrong: the part of fewer decides nothing


class Measure(NamedTuple):
    """A way to hold two networks' predictions against one another."""

    key: str
    before: str
    words: str


BOTH_WRONG = Measure("both_wrong", WRONG, "Agreement of {} on images that both get wrong")
AGREEMENT = Measure("agreement", "", "Agreement of {}")
COHEN = Measure("kappa", KAPPA, "Cohen's kappa of {}")


def predictions(desk: Desk) -> Finding:
    """Agreement between schemes on images that both get wrong, at less st.

    That of predictions and of probes of the final layer decides, on attacked images, own and
    shared. Agreement on all images, Cohen's kappa, accuracies and the clean images are beside.
    """
    evidence = desk.evidence
    sources: dict[str, Predictions] = {}
    if evidence.predictions is not None:
        sources[PREDICTION] = Predictions(evidence.predictions)
    if evidence.probe_predictions is not None:
        probes = Predictions(evidence.probe_predictions, PROBED)
        sources |= {f"{PROBE} {layer}": probes for layer in probes.layers}
    schemes = evidence.schemes(ST, AT)
    final = _final(desk, [kind.split(" ", 1)[1] for kind in sources if kind != PREDICTION])
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    notes = desk.left_out(ST, AT)
    for reading in readings(evidence):
        for kind, source in sources.items():
            full = kind in (PREDICTION, f"{PROBE} {final}")  # of other layers one number
            for measure in (BOTH_WRONG, AGREEMENT, COHEN) if full else (BOTH_WRONG,):
                decides = full and measure is BOTH_WRONG and reading.name != "clean"
                for pair in combinations(schemes, 2):
                    sides, gain = _pair(desk, source, pair, kind, measure, reading)
                    numbers += sides if full else []
                    (differences if decides else numbers).extend(gain)
                    controls += _same_images(desk, source, pair, kind, reading) if decides else []
                if full:
                    controls += _seeds(desk, source, schemes, kind, measure, reading)
    if not differences:
        return desk.missing(
            KEY,
            CLAIM,
            "predictions (with labels) of st and of at networks of two schemes, attacked",
        )
    controls += [
        one for kind, source in sources.items() if kind in (PREDICTION, f"{PROBE} {final}")
        for one in _right(desk, source, schemes, kind)
    ]  # fmt: skip
    notes += _images(numbers)
    if any(one.outcome == TOO_FEW for one in differences):
        notes.append(f"A part of fewer than {LEAST} images that both get wrong decides nothing.")
    if not any(one.key.startswith(PROBE) for one in differences):
        notes.append("No probes of the final layer on attacked images: predictions alone decide.")
    return desk.finding(KEY, CLAIM, numbers, controls, differences, notes)


def _pair(
    desk: Desk, source: Predictions, schemes: tuple[str, str], kind: str, measure: Measure,
    reading: Reading,
) -> tuple[list[Number], list[Number]]:  # fmt: skip
    """Two schemes: st and at, and what at gains; none where there are no predictions."""
    name, evidence = " & ".join(schemes), desk.evidence
    key, words = _key(kind, measure), measure.words.format(_words(kind))
    every: dict[str, list[Quantity | None]] = {}
    found: list[Number] = []
    for scenario in (ST, AT):
        these, those = (evidence.group(scheme, scenario) for scheme in schemes)
        each = desk.between(these, those, f"{measure.before}{kind}", reading.condition, source)
        every[scenario] = each
        found += desk.number(
            Seeds.of(each), f"{key}_{reading.name}",
            f"{words} between schemes, {scenario} networks, {reading.words}", _layers(kind),
            scheme=name, scenario=scenario,
        )  # fmt: skip
    there = {scenario: [one for one in each if one] for scenario, each in every.items()}
    if not there[ST] or not there[AT]:
        return found, []
    at, st = Seeds.of(there[AT]), Seeds.of(there[ST])
    about = (
        f"{key}_{reading.name}_at_less_st",
        f"{words} between schemes, {reading.words}, at - st",
    )
    least = min(one.samples or 0 for each in there.values() for one in each)
    if at is None or st is None:
        made = _undefined(*about, there[ST] + there[AT])
        made = replace(made, layers=_layers(kind), scheme=name, scenario="at - st")
    else:
        made = desk.difference(
            [(1.0, at), (-1.0, st)], *about, _layers(kind), scheme=name, scenario="at - st"
        )
    if measure is BOTH_WRONG and least < LEAST:
        made = replace(made, outcome=TOO_FEW, samples=least)
    return found, [made]


def _same_images(
    desk: Desk, source: Predictions, schemes: tuple[str, str], kind: str, reading: Reading
) -> list[Number]:
    """What at gains on images that two st and two at networks of the same seeds all get wrong.

    st networks get nearly all attacked images wrong, at networks the harder ones, of which two may
    say the same for that alone.
    """
    st, at = (
        [{one.seed: one for one in desk.evidence.group(scheme, name)} for scheme in schemes]
        for name in (ST, AT)
    )
    gains = []
    for i in sorted(st[0].keys() & at[0].keys()):
        for j in sorted(st[1].keys() & at[1].keys()):
            sides = [
                [f"{one.name}:{reading.condition}" for one in (these[0][i], these[1][j])]
                for these in (at, st)
            ]
            ours, theirs = (
                source.find(f"{WRONG}{kind} & {' & '.join(others)}", *two)
                for two, others in (sides, reversed(sides))
            )
            gains.append(less(ours, theirs))
    return desk.number(
        Seeds.of(gains), f"{kind.split(' ')[0]}_all_wrong_{reading.name}_at_less_st",
        f"Agreement of {_words(kind)} on images that all four get wrong between schemes, "
        f"{reading.words}, at - st", _layers(kind), scheme=" & ".join(schemes),
        scenario="at - st", difference=True,
    )  # fmt: skip


def _images(numbers: Sequence[Number]) -> list[str]:
    """How many images two networks get wrong: hard ones of at, of st nearly all under attack."""
    told = []
    for reading in ("own", "shared"):
        wrong = [one for one in numbers if one.key == f"{PREDICTION}_both_wrong_{reading}"]
        counts = {s: [one.samples or 0 for one in wrong if one.scenario == s] for s in (ST, AT)}
        least = [f"{min(each)} of two {s} networks" for s, each in counts.items() if each]
        told += [f"{reading} {' and '.join(least)}"] if least else []
    return [
        f"st and at networks do not get the same images wrong; at least: {'; '.join(told)}. Among "
        "the controls is the same gain on images that all four get wrong."
    ] if told else []  # fmt: skip


def _undefined(key: str, label: str, parts: Sequence[Quantity]) -> Number:
    """A number that is not there, because there is no image to take it of."""
    sides = [side for one in parts for _, term in one.terms for side in term.sides]
    return Number(
        key, label, float("nan"), signed=True,
        networks=tuple(dict.fromkeys(network for network, _ in sides)),
        conditions=tuple(dict.fromkeys(condition for _, condition in sides)),
        command=f'python -m repsim.findings {parts[0].file} "{parts[0].text()}"',
    )  # fmt: skip


def _right(desk: Desk, source: Predictions, schemes: Sequence[str], kind: str) -> list[Number]:
    """How often each is right on these very images, attacked at full strength."""
    evidence, found = desk.evidence, []
    key = "compared_accuracy" if kind == PREDICTION else "compared_probe_accuracy"
    words = "networks" if kind == PREDICTION else _words(kind)
    for reading in readings(evidence):
        for scheme in schemes:
            for scenario in (ST, AT):
                found += desk.number(
                    desk.seeds(
                        evidence.group(scheme, scenario),
                        Sides(f"{ACCURACY}{kind}", reading.condition, reading.condition), source,
                    ),
                    f"{key}_{reading.name}",
                    f"Accuracy of {words} on the images compared (attacks at full strength), "
                    f"{scenario}, {reading.words}", _layers(kind), scheme=scheme, scenario=scenario,
                )  # fmt: skip
    return found


def _final(desk: Desk, probed: list[str]) -> str:
    """The deepest layer that has probes; "" for none."""
    evidence = desk.evidence
    networks = evidence.usual()
    order = desk.similarity.layers(networks[0].name, evidence.clean) if networks else ()
    found = [layer for layer in order if layer in probed] or probed
    return found[-1] if found else ""


def _seeds(
    desk: Desk, source: Predictions, schemes: Sequence[str], kind: str, measure: Measure,
    reading: Reading,
) -> list[Number]:  # fmt: skip
    """Two seeds of one scheme."""
    found: list[Number] = []
    gains = []
    key, words = _key(kind, measure), measure.words.format(_words(kind))
    for scheme in schemes:
        sides: dict[str, Seeds | None] = {}
        for scenario in (ST, AT):
            group = desk.evidence.group(scheme, scenario)
            sides[scenario] = desk.pairs(
                group, group, f"{measure.before}{kind}", reading.condition, source
            )
            found += desk.number(
                sides[scenario], f"{key}_{reading.name}_two_seeds",
                f"{words} between two seeds, {scenario} networks, {reading.words}", _layers(kind),
                scheme=scheme, scenario=scenario,
            )  # fmt: skip
        at, st = sides[AT], sides[ST]
        if at is not None and st is not None:
            gains.append(at.mean - st.mean)
    if gains:
        found += desk.number(
            mean(gains), f"{key}_{reading.name}_two_seeds_at_less_st",
            f"{words} between two seeds of one scheme, {reading.words}, at - st", _layers(kind),
            scenario="at - st", difference=True,
        )  # fmt: skip
    return found


def _key(kind: str, measure: Measure) -> str:
    return f"{kind.split(' ')[0]}_{measure.key}"


def _layers(kind: str) -> str:
    return "output" if kind == PREDICTION else kind.split(" ", 1)[1]


def _words(kind: str) -> str:
    return "predictions" if kind == PREDICTION else f"probes of {kind.split(' ', 1)[1]}"
