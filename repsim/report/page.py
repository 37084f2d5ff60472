"""The HTML page: plain values for the template, which escapes them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup

import repsim
from repsim.findings import Finding
from repsim.plot.heatmaps import UNDER
from repsim.report.cite import BIBTEX
from repsim.report.explorer import NOT_DEFINED, Explorer
from repsim.report.figures import Drawn
from repsim.report.made import made, stage_anchor
from repsim.report.numbers import groups
from repsim.report.read import NOISE, Study, condition_head, records
from repsim.report.tables import ROLES, verdict_counts
from repsim.report.words import (
    SCENARIOS,
    SCHEMES,
    SHORT,
    VERDICTS,
    full_name,
    listing,
    percent,
    plural,
    pretty,
)


def page(
    study: Study,
    *,
    of_findings: Mapping[str, Sequence[Drawn]],
    decisions: Drawn | None,
    accuracy: Drawn | None,
    heatmaps: Sequence[Drawn],
    probes: Sequence[Drawn],
    explorer: Explorer | None,
) -> str:
    """The page of a study, whole.

    Args:
        study: what was read.
        of_findings: the figures of each finding, by its key.
        decisions: that of all differences.
        accuracy: that of the accuracies.
        heatmaps: those that stand for the interactive panels on paper.
        probes: the probes' curves.
        explorer: the interactive panels.
    """
    from jinja2 import Environment, StrictUndefined

    engine = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True
    )
    files = resources.files("repsim.report") / "templates"
    source = {name: (files / name).read_text(encoding="utf-8") for name in (
        "page.html.jinja", "style.css", "explorer.js", "page.js")}  # fmt: skip
    about = study.about
    found = [
        {
            **_finding(one, of_findings.get(one.key, ())),
            "matrices": None if explorer is None else _matrices(study, one.key, explorer),
        }
        for one in study.findings
    ]
    template = engine.from_string(source["page.html.jinja"])
    return template.render(
        version=repsim.__version__,
        title=_title(study),
        kicker=_kicker(study),
        question=_question(study),
        style=Markup(source["style.css"]),
        page_script=source["page.js"],
        explorer_script=source["explorer.js"],
        kinds=VERDICTS,
        findings=found,
        counted=_counted(study.findings),
        margin=f"{max((one.margin for one in study.findings), default=0):g}",
        decisions=decisions,
        explorer=explorer,
        matrices=None if explorer is None else _script_json(explorer.data),
        networks=[(one.name, full_name(one)) for one in study.networks],
        short_words=_short_words(study),
        measure=_measure(study),
        under=UNDER,
        undefined_color=NOT_DEFINED,
        heatmaps=heatmaps,
        probes=probes,
        probed=[
            (one.name, anchor)
            for one in study.networks
            if probes and (anchor := stage_anchor(about, "probe", one.name))
        ],
        accuracy=accuracy,
        **_accuracies(study),
        made=made(study, _measure(study)),
        bibtex=BIBTEX.format(version=repsim.__version__),
    )


def _script_json(plain: Any) -> Markup:
    """JSON that may stand inside a script element whatever strings are in it."""
    text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(sign, code)
    return Markup(text)


def _title(study: Study) -> str:
    preset = study.about.get("preset")
    return f"Adversarial training and representations{f' ({preset})' if preset else ''} · repsim"


def _kicker(study: Study) -> str:
    settings = study.about.get("settings") or {}
    finished = [str(row.get("finished") or "") for row in study.about.get("stages") or []]
    parts = [
        f"A repsim study · {study.about.get('study', 'universal')}",
        f"preset {study.about['preset']}" if study.about.get("preset") else "",
        str(settings.get("data") or ""),
        str(settings.get("model") or ""),
        max(finished, default="")[:10],
    ]
    return " · ".join(part for part in parts if part)


def _question(study: Study) -> list[str]:
    settings = study.about.get("settings") or {}
    on = f" on {settings['data']}" if settings.get("data") else ""
    images = (
        f", {study.similarity.samples} test images" if study.similarity is not None else ""
    )  # fmt: skip
    return [
        "Adversarial training makes a network robust. What does it change inside: do clean and "
        "attacked images come to look alike to it, and do networks that learnt in different ways "
        "come to represent images alike?",
        "Ghofrani et al. (arXiv 2302.02502) say so: one universal robust representation. Their "
        "critics (arXiv 2510.19427) say that the functions do not converge with it.",
        f"Here {plural(len(study.networks), 'network')}{on}{images}: every claim as a number with "
        "its interval, held against controls and against the paper's own value.",
    ]


def _counted(found: Sequence[Finding]) -> str:
    counts = verdict_counts(found)
    order = [(verdict, counts[verdict]) for verdict in VERDICTS if verdict in counts]
    verbs = {
        "holds": ("holds", "hold"),
        "does not hold": ("does not hold", "do not hold"),
        "not resolved": ("is not resolved", "are not resolved"),
        "not run": ("was not run", "were not run"),
    }
    words = [f"{count} {verbs[verdict][count != 1]}" for verdict, count in order]
    return f"Of {plural(len(found), 'claim')}, {listing(words)}"


def _measure(study: Study) -> str:
    if study.similarity is None:
        return ""
    from repsim.plot.result import measure_label

    one = study.networks[0].name
    condition = study.conditions(one)[0]
    return measure_label([study.similarity.matrix((one, condition), (one, condition))])


def _finding(one: Finding, figures: Sequence[Drawn]) -> dict[str, Any]:
    commands: list[str] = []
    tables = {role: groups(one, role, commands) for role in ROLES}
    deciding = {n.command for n in one.differences}
    return {
        "key": one.key,
        "short": SHORT.get(one.key, f"Finding {one.key}"),
        "claim": pretty(one.claim),
        "verdict": one.verdict,
        "reason": pretty(one.reason),
        "notes": [pretty(note) for note in one.notes],
        "figures": list(figures),
        "counts": {role: len(getattr(one, role)) for role in ROLES},
        "commands": commands,
        "deciding": sum(command in deciding for command in commands),
        **tables,
    }


def _matrices(study: Study, key: str, explorer: Explorer) -> dict[str, str] | None:
    """Which choice of the interactive panels shows what a finding is about."""
    own = study.own
    if key in ("1", "2", "5", "6") and own is not None:
        words = "each network, clean against attacked"
        return {"where": "layers", "set": "compare", "value": f"clean|{own}", "words": words}
    if key in ("3", "7"):
        words = "each network, clean against clean"
        return {"where": "layers", "set": "compare", "value": "clean|clean", "words": words}
    if key in ("4", "8") and own is not None and explorer.pairs:
        words = "two networks, each on its own attacked images"
        return {"where": "pairs", "set": "reading", "value": own, "words": words}
    return None


def _short_words(study: Study) -> str:
    """What the abbreviations of these networks mean."""
    schemes = dict.fromkeys(
        one.scheme for one in study.networks if one.scenario != "untrained"
    )  # fmt: skip
    scenarios = dict.fromkeys(one.scenario for one in study.networks)
    words = [f"{one}: {SCHEMES[one]}" for one in schemes if one in SCHEMES]
    words += [f"{one}: {SCENARIOS[one]}" for one in scenarios if one != "untrained"]
    return "; ".join(words) + "." if words else ""


def _accuracies(study: Study) -> dict[str, Any]:
    table = study.accuracy
    if table is None or not len(table):
        return {"accuracies": [], "conditions": [], "accuracy_commands": []}
    conditions = list(dict.fromkeys(table["condition"]))
    cells = {(str(r["network"]), str(r["condition"])): r for r in records(table)}
    rows = []
    for name in dict.fromkeys(table["network"]):
        known = study.network(name)
        made = []
        for condition in conditions:
            row = cells.get((name, condition))
            ends = "" if row is None else f"[{percent(row['lower'])}, {percent(row['upper'])}]"
            made.append(
                {"condition": condition, "value": percent(None if row is None else row["accuracy"]),
                 "interval": ends}
            )  # fmt: skip
        rows.append(
            {"network": name, "words": full_name(known) if known else "", "cells": made,
             "ref": stage_anchor(study.about, "evaluate", name)}
        )  # fmt: skip
    return {
        "accuracies": rows,
        "conditions": [condition_head(table, condition) for condition in conditions],
        "accuracy_commands": _accuracy_commands(study, rows[0]["network"], conditions),
    }


def _accuracy_commands(study: Study, network: str, conditions: Sequence[str]) -> list[str]:
    """What gives a network's accuracies again, typed in the study's folder."""
    evaluate = (study.about.get("settings") or {}).get("evaluate") or {}
    files = {one.get("name"): one.get("file") for one in study.about["networks"]}
    file, found = files.get(network), list[str]()
    if file and evaluate.get("attacks"):
        attacks = " ".join(f"--attack {shlex.quote(str(one))}" for one in evaluate["attacks"])
        samples = f" --samples {evaluate['samples']}" if evaluate.get("samples") else ""
        found.append(f"repsim evaluate --model {shlex.quote(str(file))} {attacks}{samples}")
    for condition in (NOISE, study.shared):
        if condition in conditions:
            side = f"{network}:{condition}"
            found.append(f'python -m repsim.findings predictions.csv "[accuracy]({side}, {side})"')
    return found
