"""A finished study as one self-contained HTML page, figures, tables and a summary.

from repsim.report import write_report

write_report("universal-demo")  # universal-demo/report.html and the rest
"""

from __future__ import annotations

from repsim.report.write import write_report

__all__ = ["write_report"]
