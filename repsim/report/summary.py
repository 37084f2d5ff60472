"""The report in Markdown: verdicts, the differences behind them, accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence

from repsim.findings import Finding, Number
from repsim.report.read import Study, condition_head, records
from repsim.report.words import interval, number, percent, pretty, signed


def summary(study: Study) -> str:
    """Verdicts with their reasons, each deciding difference with interval and command."""
    about = study.about
    settings = about.get("settings") or {}
    title = f"{about.get('study', 'universal')}, preset {about.get('preset', 'of your own')}"
    parts = [
        f"# Adversarial training and representations: {title}",
        f"{len(study.networks)} networks"
        + (f" ({settings['model']})" if settings.get("model") else "")
        + (f" on {settings['data']}" if settings.get("data") else "")
        + (f", {study.similarity.samples} test images" if study.similarity is not None else "")
        + ". The whole report: [report.html](report.html).",
        "## Verdicts",
        *_verdicts(study.findings),
        "## The differences that decide",
        *[_deciding(one) for one in study.findings if one.differences],
    ]
    if study.accuracy is not None and len(study.accuracy):
        parts += ["## Accuracies", _accuracies(study)]
    parts += [
        "Intervals are 95%, over images unless the table says otherwise. Commands are run in this "
        "folder. All numbers: [tables/numbers.csv](tables/numbers.csv)."
    ]
    return "\n\n".join(parts) + "\n"


def _verdicts(found: Sequence[Finding]) -> list[str]:
    if not found:
        return ["No findings: that stage has not run."]
    rows = [
        f"| {one.key} | {_cell(pretty(one.claim))} | **{one.verdict}** | "
        f"{_cell(pretty(one.reason))} |"
        for one in found
    ]
    return ["\n".join(["| | claim | verdict | why |", "| --- | --- | --- | --- |", *rows])]


def _deciding(one: Finding) -> str:
    rows = [
        f"| {_cell(pretty(n.label))} | {_cell(n.scheme)} | {_text(n)} | "
        f"{number(n.paper, sign=True)} | {_cell(n.outcome or '')} | {_code(n.command)} |"
        for n in one.differences
    ]
    head = [
        "| difference | scheme | value, 95% interval | paper | outcome | command |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    notes = [f"- {pretty(note)}" for note in one.notes]
    lines = [f"### {one.key}. {pretty(one.claim)}", "", *head, *rows]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _text(one: Number) -> str:
    if math.isnan(one.value):
        return "not defined"
    sign = signed(one)
    return f"{number(one.value, sign=sign)} {interval(one.lower, one.upper, sign=sign)}".strip()


def _accuracies(study: Study) -> str:
    table = study.accuracy
    assert table is not None
    conditions = list(dict.fromkeys(table["condition"]))
    cells = {(str(r["network"]), str(r["condition"])): r for r in records(table)}
    heads = [condition_head(table, condition) for condition in conditions]
    rows = [f"| network | {' | '.join(map(_cell, heads))} |",
            "| --- |" + " --- |" * len(conditions)]  # fmt: skip
    for name in dict.fromkeys(table["network"]):
        texts = []
        for condition in conditions:
            row = cells.get((name, condition))
            texts.append(
                "–" if row is None else
                f"{percent(row['accuracy'])} [{percent(row['lower'])}, {percent(row['upper'])}]"
            )  # fmt: skip
        rows.append(f"| {_cell(name)} | {' | '.join(texts)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""
