"""Linear probes of every layer at once.

from repsim.probe import probe_live, probe_stores
"""

from __future__ import annotations

from repsim.probe.agreement import agreement, agreements
from repsim.probe.api import probe_live, probe_stores
from repsim.probe.report import ProbeReport, load_probes
from repsim.probe.settings import SOLVERS, Settings

__all__ = [
    "SOLVERS",
    "ProbeReport",
    "Settings",
    "agreement",
    "agreements",
    "load_probes",
    "probe_live",
    "probe_stores",
]
