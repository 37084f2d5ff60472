"""Findings: similarities, accuracies and agreements as named numbers with intervals and verdicts.

    from repsim.findings import Evidence, Network, findings
    networks = [Network("sl-st-0", "sl", "st", 0), Network("sl-at-0", "sl", "at", 0, 8 / 255), ...]
    for one in findings(Evidence(networks, similarity, own="pgd", shared="shared")):
        print(one.key, one.verdict, one.reason)

The rule of the verdicts is in `repsim.findings.verdict`. Each number names the command that makes
it again, `python -m repsim.findings FILE "NUMBER"`.
"""

from repsim.findings.api import findings
from repsim.findings.evidence import Evidence, Network
from repsim.findings.finding import Finding, findings_from_json
from repsim.findings.number import Number
from repsim.findings.paper import paper_numbers

__all__ = [
    "Evidence",
    "Finding",
    "Network",
    "Number",
    "findings",
    "findings_from_json",
    "paper_numbers",
]
