"""The last stages: what was found, and the report."""

from __future__ import annotations

from typing import Any

import pandas as pd

from repsim.attacks import parse_attacks
from repsim.findings import Evidence, Network
from repsim.findings.api import findings
from repsim.findings.evidence import reach_of
from repsim.result.pairs import load_pairs
from repsim.study.measure import own_attack
from repsim.study.networks import StudyNetwork, training_plan
from repsim.study.shared import SHARED
from repsim.study.study import Study


def networks_of(study: Study) -> list[Network]:
    """The study's networks as findings see them."""
    return [
        Network(one.name, one.scheme, one.scenario, one.seed, one.eps, one.arch, _reach(study, one))
        for one in study.networks
    ]


def robust_condition(study: Study) -> str:
    """The condition that robust accuracy means: the first attack of `evaluate`."""
    return parse_attacks(study.settings.evaluate.attacks[0], eps=study.eps)[0].condition


def evidence_of(study: Study) -> Evidence:
    """What a study's folder knows of its networks."""
    folder = study.folder
    return Evidence(
        networks=networks_of(study),
        similarity=load_pairs(folder / "similarity.h5"),
        own=own_attack(study).condition,
        shared=SHARED,
        within=load_pairs(folder / "within.h5"),
        accuracy=pd.read_csv(folder / "accuracy.csv"),
        robust=robust_condition(study),
        predictions=pd.read_csv(folder / "predictions.csv"),
        probe_predictions=pd.read_csv(folder / "probe_predictions.csv"),
    )


def _reach(study: Study, network: StudyNetwork) -> float | None:
    """How far its training attack can go; None for a user's own, which does not say."""
    if network.kind is None or not network.kind.recipe:
        return None
    attack = training_plan(network, study.settings).phases[0].attack
    return None if attack is None else reach_of(attack.params)


def find(study: Study) -> dict[str, Any]:
    """The stage `findings`: the verdicts with their numbers."""
    found = findings(evidence_of(study), margin=study.settings.margin)
    study.write_json("findings.json", [one.to_json() for one in found])
    return {"verdicts": {one.key: one.verdict for one in found}}


def report(study: Study) -> dict[str, Any]:
    """The stage `report`: the page, figures, tables and the summary."""
    from repsim.report import write_report

    write_report(study.folder)
    return {}
