"""Which figures belong to which finding."""

from __future__ import annotations

from collections.abc import Callable

from repsim.report.curves_of import (
    adversarial,
    budgets,
    full_at,
    long_range,
    standard,
    universality,
)
from repsim.report.drawing import Drawing
from repsim.report.figures import Drawn
from repsim.report.points_of import functions, robust_accuracy

FIGURES: dict[str, Callable[[Drawing], list[Drawn | None]]] = {
    "1": standard,
    "2": adversarial,
    "3": long_range,
    "4": universality,
    "5": budgets,
    "6": robust_accuracy,
    "7": full_at,
    "8": functions,
}


def figures_of(key: str, draw: Drawing) -> list[Drawn]:
    """Figures of the finding of that key, none where its networks are missing."""
    if key not in FIGURES or draw.study.similarity is None:
        return []
    return [figure for figure in FIGURES[key](draw) if figure is not None]
