"""Numbers of a finding as rows for the page's tables, with the commands that make them again."""

from __future__ import annotations

import math
from typing import Any

from repsim.findings import Finding, Number
from repsim.report.marks import domain, mark
from repsim.report.tables import grouped
from repsim.report.words import interval, number, plural, pretty, signed

_OUTCOMES = {"as claimed": "yes", "the other way": "no", "within the margin": "no"}


def groups(one: Finding, role: str, commands: list[str]) -> list[dict[str, Any]]:
    """The numbers of a role under their labels; their commands are added to the list."""
    numbers: list[Number] = getattr(one, role)
    deciding = role == "differences"
    groups = []
    whole = domain(numbers, one.margin) if deciding and numbers else None
    for label, members in grouped(numbers):
        margin = one.margin if deciding or all(signed(n) for n in members) else None
        scale = whole or domain(members, margin)
        rows = []
        for n in members:
            if n.command and n.command not in commands:
                commands.append(n.command)
            nth = commands.index(n.command) + 1 if n.command else None
            rows.append(
                {
                    "who": _who(n),
                    "value": "not defined"
                    if math.isnan(n.value)
                    else number(n.value, sign=signed(n)),
                    "interval": interval(n.lower, n.upper, sign=signed(n)),
                    "of": _of(n),
                    "mark": mark(n, scale, margin),
                    "seeds": _seeds(n, deciding),
                    "paper": "" if n.paper is None else number(n.paper, sign=signed(n)),
                    "agrees": pretty(n.agrees or ""),
                    "outcome": n.outcome or "",
                    "kind": _OUTCOMES.get(n.outcome or "", ""),
                    "ref": f"c{one.key}-{nth}" if nth else "",
                    "nth": nth,
                }
            )
        groups.append({"label": pretty(label), "rows": rows})
    return groups


def _who(n: Number) -> str:
    told = f" {n.scenario}" in n.label  # the heading says it already
    parts = [n.scheme, "" if told else pretty(n.scenario)]
    return " ".join(part for part in parts if part) or plural(len(n.networks), "network")


def _of(n: Number) -> str:
    """How an interval was made where it is no jackknife over images, and how many images."""
    parts = [f"n = {n.samples}"] if n.samples else []
    if n.lower is not None:
        parts += [n.interval] if n.interval not in ("", "jackknife") else []
        parts += [f"over {n.over}"] if n.over != "images" else []
    return ", ".join(parts)


def _seeds(n: Number, deciding: bool) -> str:
    if deciding:
        return "" if n.spread is None else number(n.spread)
    if n.seed_lower is None or n.seed_upper is None:
        return ""
    sign = signed(n)
    return f"{number(n.seed_lower, sign=sign)} to {number(n.seed_upper, sign=sign)}"
