"""Finding 8: do predictions and probes of different schemes converge, too?

The counter-claim (Klabunde, Caspari and Lemmerich 2025, arXiv 2510.19427): representations of
robust networks may be alike, their predictions are not, and what differs is the classifier at the
end. So predictions stand beside probes, which are classifiers trained anew.
"""

from __future__ import annotations

from itertools import combinations

from repsim.findings.agreements import (
    ACCURACY,
    KAPPA,
    PREDICTION,
    PROBE,
    PROBED,
    Accuracies,
    Agreements,
    Predictions,
)
from repsim.findings.cross_scheme import Reading, readings
from repsim.findings.desk import Desk, Seeds, Sides
from repsim.findings.evidence import AT, ST
from repsim.findings.finding import Finding
from repsim.findings.number import Number
from repsim.findings.quantity import Source, mean

KEY = "8"
CLAIM = (
    "On attacked inputs the predictions and the probes of adversarially trained networks of "
    "different schemes agree more than those of standard ones: functions converge, too."
)


def predictions(desk: Desk) -> Finding:
    """Agreement between schemes, at less st: predictions, and probes of the final layer.

    Attacked images decide, own and shared. Two that are right agree, so accuracies, Cohen's kappa
    and the clean images are beside.
    """
    evidence = desk.evidence
    rows = evidence.agreement
    table = None if rows is None or rows.empty else Agreements(rows)
    said = None if evidence.predictions is None else Predictions(evidence.predictions)
    sources: dict[str, Source] = {}
    if (first := said or table) is not None:
        sources[PREDICTION] = first
    if table is not None:
        sources |= {f"{PROBE} {layer}": table for layer in table.layers}
    probed = evidence.probe_predictions
    if probed is not None:
        probes = Predictions(probed, PROBED)
        sources |= {f"{PROBE} {layer}": probes for layer in probes.layers}
    schemes = evidence.schemes(ST, AT)
    final = _final(desk, [kind.split(" ", 1)[1] for kind in sources if kind != PREDICTION])
    numbers: list[Number] = []
    controls: list[Number] = []
    differences: list[Number] = []
    notes = desk.left_out(ST, AT)
    for reading in readings(evidence):
        for kind, source in sources.items():
            full = kind in (PREDICTION, f"{PROBE} {final}")  # of other layers the differences only
            for one, other in combinations(schemes, 2):
                name = f"{one} & {other}"
                sides = {
                    scenario: desk.agreement(
                        source, evidence.group(one, scenario), evidence.group(other, scenario),
                        kind, reading.condition,
                    ) for scenario in (ST, AT)
                }  # fmt: skip
                for scenario, seeds in sides.items() if full else ():
                    numbers += desk.number(
                        seeds, f"{_key(kind)}_{reading.name}",
                        f"{_words(kind)} between schemes, {scenario} networks, {reading.words}",
                        _layers(kind), scheme=name, scenario=scenario,
                    )  # fmt: skip
                at, st = sides[AT], sides[ST]
                if at is None or st is None:
                    continue
                made = desk.difference(
                    [(1.0, at), (-1.0, st)], f"{_key(kind)}_{reading.name}_at_less_st",
                    f"{_words(kind)} between schemes, {reading.words}, at - st", _layers(kind),
                    scheme=name, scenario="at - st",
                )  # fmt: skip
                decides = full and reading.name != "clean"
                (differences if decides else numbers).append(made)
                if full and table is not None:
                    numbers += _kappa(desk, table, one, other, kind, reading)
            if full:
                controls += _seeds(desk, source, schemes, kind, reading)
    if not differences:
        return desk.missing(
            KEY, CLAIM, "agreements of st and of at networks of two schemes, attacked"
        )
    controls += _right(desk, schemes, final)
    if not any(one.key.startswith(PROBE) for one in differences):
        notes.append("No probes of the final layer on attacked images: predictions alone decide.")
    return desk.finding(KEY, CLAIM, numbers, controls, differences, notes)


def _right(desk: Desk, schemes: list[str], final: str) -> list[Number]:
    """How often each is right: two that are right agree."""
    evidence, found = desk.evidence, []
    tables = (
        (evidence.accuracy, "accuracy.csv", ACCURACY, "networks", "output"),
        (evidence.probes, "probes.csv", f"{ACCURACY} of {PROBE} {final}",
         f"probes of {final}", final),
    )  # fmt: skip
    for table, file, part, words, layers in tables:
        if table is None or table.empty:
            continue
        source = Accuracies(table, file)
        for reading in readings(evidence):
            for scheme in schemes:
                for scenario in (ST, AT):
                    found += desk.number(
                        desk.seeds(
                            evidence.group(scheme, scenario),
                            Sides(part, reading.condition, reading.condition), source,
                        ),
                        f"{'probe_' if layers != 'output' else ''}accuracy_{reading.name}",
                        f"Accuracy of {words}, {scenario}, {reading.words}", layers,
                        scheme=scheme, scenario=scenario,
                    )  # fmt: skip
    return found


def _final(desk: Desk, probed: list[str]) -> str:
    """The deepest layer that has probes; "" for none."""
    evidence = desk.evidence
    order = desk.similarity.layers(evidence.networks[0].name, evidence.clean)
    found = [layer for layer in order if layer in probed] or probed
    return found[-1] if found else ""


def _kappa(
    desk: Desk, table: Agreements, one: str, other: str, kind: str, reading: Reading
) -> list[Number]:
    """Agreement beyond what the frequencies of the classes give."""
    evidence = desk.evidence
    sides = {
        scenario: desk.agreement(
            table, evidence.group(one, scenario), evidence.group(other, scenario),
            f"{KAPPA}{kind}", reading.condition,
        ) for scenario in (ST, AT)
    }  # fmt: skip
    at, st = sides[AT], sides[ST]
    if at is None or st is None:
        return []
    return desk.number(
        at.mean - st.mean, f"{_key(kind)}_kappa_{reading.name}_at_less_st",
        f"Cohen's kappa, {_words(kind)} between schemes, {reading.words}, at - st", _layers(kind),
        scheme=f"{one} & {other}", scenario="at - st", difference=True,
    )  # fmt: skip


def _seeds(
    desk: Desk, source: Source, schemes: list[str], kind: str, reading: Reading
) -> list[Number]:
    """Two seeds of one scheme."""
    found: list[Number] = []
    gains = []
    for scheme in schemes:
        sides: dict[str, Seeds | None] = {}
        for scenario in (ST, AT):
            group = desk.evidence.group(scheme, scenario)
            sides[scenario] = desk.agreement(source, group, group, kind, reading.condition)
            found += desk.number(
                sides[scenario], f"{_key(kind)}_{reading.name}_two_seeds",
                f"{_words(kind)} between two seeds, {scenario} networks, {reading.words}",
                _layers(kind), scheme=scheme, scenario=scenario,
            )  # fmt: skip
        at, st = sides[AT], sides[ST]
        if at is not None and st is not None:
            gains.append(at.mean - st.mean)
    if gains:
        found += desk.number(
            mean(gains), f"{_key(kind)}_{reading.name}_two_seeds_at_less_st",
            f"{_words(kind)} between two seeds of one scheme, {reading.words}, at - st",
            _layers(kind), scenario="at - st", difference=True,
        )  # fmt: skip
    return found


def _key(kind: str) -> str:
    return f"{kind.split(' ')[0]}_agreement"


def _layers(kind: str) -> str:
    return "output" if kind == PREDICTION else kind.split(" ", 1)[1]


def _words(kind: str) -> str:
    return "Agreement of predictions" if kind == PREDICTION else (
        f"Agreement of probes of {kind.split(' ', 1)[1]}"
    )  # fmt: skip
