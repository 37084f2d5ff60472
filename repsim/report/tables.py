"""The report's tables as CSV: verdicts, every number, networks, stages."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from repsim.files import replacing
from repsim.findings import Finding, Number
from repsim.report.read import Study

ROLES = ("differences", "numbers", "controls")


def write_tables(study: Study, folder: Path) -> list[Path]:
    """verdicts.csv, numbers.csv, networks.csv and stages.csv; numbers with all their digits.

    Raises:
        UserError: a folder that cannot be written.
    """
    verdicts = [
        {"finding": one.key, "claim": one.claim, "verdict": one.verdict, "reason": one.reason,
         "margin": one.margin, "notes": " ".join(one.notes)}
        for one in study.findings
    ]  # fmt: skip
    numbers = [
        {"finding": one.key, "role": role.removesuffix("s"), **_plain(number)}
        for one in study.findings
        for role in ROLES
        for number in getattr(one, role)
    ]
    names = [item.name for item in fields(Number)]
    written = [
        _write(
            folder / "verdicts.csv", verdicts,
            ["finding", "claim", "verdict", "reason", "margin", "notes"],
        ),
        _write(folder / "numbers.csv", numbers, ["finding", "role", *names]),
    ]  # fmt: skip
    for name in ("networks", "stages"):
        rows = [
            row
            for row in study.about.get(name) or []
            if isinstance(row, Mapping) and row.get("kind") != "report"  # which runs now
        ]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            written.append(_write(folder / f"{name}.csv", rows, columns))
    return written


def _plain(number: Number) -> dict[str, Any]:
    found = number.to_json()
    return {
        key: "; ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in found.items()
    }


def _write(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Path:
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return path


def grouped(numbers: Sequence[Number]) -> list[tuple[str, list[Number]]]:
    """Numbers that are the same question to several schemes, under that question.

    Returns:
        (label, its numbers), in the order in which the labels come first.
    """
    found: dict[str, list[Number]] = {}
    for number in numbers:
        found.setdefault(number.label, []).append(number)
    return list(found.items())


def verdict_counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings have each verdict, in the order of the findings."""
    found: dict[str, int] = {}
    for one in findings:
        found[one.verdict] = found.get(one.verdict, 0) + 1
    return found
