"""One claim with its verdict and the numbers behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from repsim.findings.number import Number

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "not resolved", "not run"
VERDICTS = (HOLDS, FAILS, OPEN, NOT_RUN)


@dataclass(frozen=True)
class Finding:
    """A claim of the paper or of its critics, and what these networks say to it.

    Attributes:
        key: "1" to "8".
        claim: in one sentence.
        verdict: one of `VERDICTS`; the rule is in `repsim.findings.verdict`.
        reason: the numbers that decide, and in which scheme; of a claim of several parts with the
            verdict of each.
        margin: differences within ± this mean nothing; stated before looking.
        numbers: all of this claim.
        controls: what the numbers must be held against: noise of the same size, two seeds of one
            scheme, an untrained network, the same within classes.
        differences: those that decide, each with interval and outcome.
        notes: what else a reader should know, a sentence each.
    """

    key: str
    claim: str
    verdict: str
    reason: str
    margin: float
    numbers: list[Number] = field(default_factory=list)
    controls: list[Number] = field(default_factory=list)
    differences: list[Number] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "key": self.key,
            "claim": self.claim,
            "verdict": self.verdict,
            "reason": self.reason,
            "margin": self.margin,
            "numbers": [one.to_json() for one in self.numbers],
            "controls": [one.to_json() for one in self.controls],
            "differences": [one.to_json() for one in self.differences],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Finding:
        """What `to_json` gave."""
        lists = {
            name: [Number.from_json(one) for one in plain.get(name, [])]
            for name in ("numbers", "controls", "differences")
        }
        return cls(
            key=plain["key"],
            claim=plain["claim"],
            verdict=plain["verdict"],
            reason=plain["reason"],
            margin=plain["margin"],
            notes=list(plain.get("notes", [])),
            **lists,
        )


def findings_from_json(plain: str | Iterable[Mapping[str, Any]]) -> list[Finding]:
    """Findings from the list of what `to_json` gave, or from its text."""
    rows = json.loads(plain) if isinstance(plain, str) else plain
    return [Finding.from_json(row) for row in rows]
