"""`write_report`: a study's folder -> report.html, summary.md, figures, tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repsim.files import replacing
from repsim.report.drawing import Drawing
from repsim.report.drawings import figures_of
from repsim.report.explorer import explorer
from repsim.report.figures import Drawn
from repsim.report.overview import accuracy, decisions, heatmaps
from repsim.report.pack import LIMIT
from repsim.report.page import page
from repsim.report.probes import probe_figures
from repsim.report.read import read_study
from repsim.report.summary import summary
from repsim.report.tables import write_tables

# Figures of a report by their names; others in that folder are not the report's.
_OWN = re.compile(r"(finding-\d.*|probes-.*|heatmaps-.*|accuracy|decisions)\.(pdf|png)")
LARGEST = 4_900_000  # bytes of the page; beyond it the interactive panels have fewer pairs


def write_report(folder: str | Path) -> Path:
    """Write the report of a study into its folder.

    Args:
        folder: what `repsim reproduce` leaves: study.json, and where they are there
            findings.json, similarity.h5, accuracy.csv, probes.csv, agreement.csv. What is not
            there is left out of the report, and the report says so.

    Returns:
        The path of report.html, one file that opens without a network. Beside it summary.md,
        figures/*.pdf and *.png, tables/*.csv.

    Raises:
        UserError: no such folder, no study.json, or a file that is not what it should be.
    """
    study = read_study(folder)
    figures, tables = study.folder / "figures", study.folder / "tables"
    figures.mkdir(exist_ok=True)
    tables.mkdir(exist_ok=True)
    write_tables(study, tables)
    draw = Drawing(study, figures)
    pictures: dict[str, Any] = {
        "of_findings": {one.key: figures_of(one.key, draw) for one in study.findings},
        "decisions": decisions(draw, study.findings),
        "accuracy": accuracy(draw),
        "heatmaps": heatmaps(draw),
        "probes": probe_figures(study, figures),
    }
    text, cells = "", LIMIT
    while not text or (len(text.encode()) > LARGEST and cells > 1000):
        text = page(study, explorer=explorer(study, cells), **pictures)
        cells //= 2
    for name, content in (("summary.md", summary(study)), ("report.html", text)):
        with replacing(study.folder / name) as beside:
            beside.write_text(content, encoding="utf-8")
    _remove_old(figures, _names(pictures))
    return study.folder / "report.html"


def _names(pictures: Mapping[str, Any]) -> set[str]:
    """Names of all figures that were drawn."""
    drawn = [*pictures.values(), *pictures["of_findings"].values()]
    every = [one for some in drawn for one in (some if isinstance(some, list) else [some])]
    return {one.name for one in every if isinstance(one, Drawn)}


def _remove_old(folder: Path, names: set[str]) -> None:
    """Remove the figures of an earlier report, of networks that are no longer there."""
    for path in folder.iterdir():
        if _OWN.fullmatch(path.name) and path.stem not in names:
            path.unlink()
