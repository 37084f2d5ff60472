"""Several networks and conditions against one another in one square map."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from repsim.plot.heatmaps import (
    SEQUENTIAL,
    add_colorbar,
    colormap,
    current,
    draw,
    heatmap,
    scale,
)
from repsim.plot.labels import LABEL_SIZE, TICK_SIZE
from repsim.plot.layout import ONE_COLUMN, TWO_COLUMNS
from repsim.plot.result import matrix, measure_label

Span = tuple[str, str, int, int]  # model, condition, first and last position + 1


def spans(result: xr.Dataset, side: str) -> list[Span]:
    """Runs of layers of one network under one condition on side "x" or "y", in order."""
    names = [
        [str(value) for value in np.atleast_1d(result[f"{side}_{word}"].values)]
        for word in ("model", "condition")
    ]
    found, start = [], 0
    for (model, condition), run in groupby(zip(*names, strict=True)):
        stop = start + len(list(run))
        found.append((model, condition, start, stop))
        start = stop
    return found


def sides_map(result: xr.Dataset, ax: Axes | None = None, *, title: str | None = None) -> Axes:
    """A heatmap of a result whose sides hold several networks or conditions.

    A line parts one network under one condition from the next; the ticks name them. With one of
    each on both sides it is `heatmap`.

    Args:
        result: comparison with `similarity` (x, y).
        ax: axes to draw into; pyplot's current axes if None.
        title: text above the axes.

    Returns:
        The axes.

    Raises:
        UserError: not a comparison result.
    """
    values = matrix(result)
    rows, columns = spans(result, "x"), spans(result, "y")
    if len(rows) == len(columns) == 1:
        return heatmap(result, ax, title=title)
    ax = current(ax)
    draw(ax, result, values, scale([values], None, None), colormap(SEQUENTIAL), False, "none", None)
    line: dict[str, Any] = {"color": "white", "linewidth": 0.8}
    stroke = [withStroke(linewidth=1.3, foreground="0.35", alpha=0.6)]
    for axis, found, cut in ((ax.yaxis, rows, ax.axhline), (ax.xaxis, columns, ax.axvline)):
        for _, _, _, stop in found[:-1]:
            cut(stop - 0.5, path_effects=stroke, **line)
        several = len({model for model, _, _, _ in found}) > 1
        axis.set_ticks(
            [(start + stop - 1) / 2 for _, _, start, stop in found],
            labels=[f"{c}\n{m}" if several else c for m, c, _, _ in found],
            fontsize=TICK_SIZE,
        )
        axis.label.set_text("" if several else found[0][0])
        axis.label.set_fontsize(LABEL_SIZE)
    ax.tick_params(axis="x", rotation=90 if len(columns) > 3 else 0, length=0)
    ax.tick_params(axis="y", length=0)
    add_colorbar(ax, [values], measure_label([result]))
    if title:
        ax.set_title(title, fontsize=LABEL_SIZE, pad=4)
    return ax


def several_sides(result: xr.Dataset) -> bool:
    """Whether rows or columns hold more than one network or condition."""
    return len(spans(result, "x")) + len(spans(result, "y")) > 2


def sides_figure(result: xr.Dataset, title: str | None = None) -> Figure:
    """`sides_map` as a figure: as wide as a paper's column (one side each) or page."""
    width = TWO_COLUMNS if several_sides(result) else ONE_COLUMN
    fig = Figure(figsize=(width, 0.86 * width))
    fig.set_layout_engine("compressed")
    sides_map(result, fig.subplots(), title=title)
    return fig
