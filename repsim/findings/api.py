"""All eight findings of a study."""

from __future__ import annotations

from repsim.errors import UserError
from repsim.findings.adversarial import adversarial
from repsim.findings.budgets import budgets
from repsim.findings.cross_scheme import cross_scheme
from repsim.findings.desk import Desk
from repsim.findings.evidence import Evidence
from repsim.findings.finding import Finding
from repsim.findings.full_at import full_at
from repsim.findings.long_range import long_range
from repsim.findings.paper import LAYERS
from repsim.findings.predictions import predictions
from repsim.findings.ranks import ranks
from repsim.findings.standard import standard
from repsim.findings.verdict import MARGIN

FINDINGS = (
    standard, adversarial, long_range, cross_scheme, budgets, ranks, full_at, predictions,
)  # fmt: skip


def findings(
    evidence: Evidence, *, margin: float = MARGIN, paper_layers: str = "blocks18"
) -> list[Finding]:
    """Every claim with its verdict, reason, numbers, controls and deciding differences.

    The rule is in `repsim.findings.verdict`. Similarities without replicates, such as published
    matrices, give numbers without intervals, and no verdict but "not resolved" or "not run".

    Args:
        evidence: networks and what is known of them.
        margin: differences within ± this mean nothing; to be stated before looking.
        paper_layers: whose numbers stand beside: "blocks18" or "all147".

    Returns:
        Eight, in order; one without its networks is "not run" and says what it needs.

    Raises:
        UserError: a margin below 0, or other layers.
    """
    if not margin >= 0:
        raise UserError(f"margin expects 0 or more; got {margin}")
    if paper_layers not in LAYERS:
        raise UserError(f"paper_layers expects {' or '.join(LAYERS)}; got {paper_layers}")
    desk = Desk(evidence, margin, paper_layers)
    return [make(desk) for make in FINDINGS]
