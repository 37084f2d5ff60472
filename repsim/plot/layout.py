"""Figures of several axes: panels on one colour scale, and the figure of a paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repsim.plot.curves import diagonal
from repsim.plot.heatmaps import (
    DIVERGING,
    SEQUENTIAL,
    add_colorbar,
    colormap,
    draw,
    name_sides,
    scale,
)
from repsim.plot.labels import LABEL_SIZE, fit, relabel, side_points, wordings
from repsim.plot.result import (
    is_control,
    is_difference,
    layers,
    matrix,
    measure_label,
    require,
)

ONE_COLUMN, TWO_COLUMNS = 3.4, 7.0  # inches: the widths of a two-column paper
_PAD = 0.03  # inches of white around the figure and its panels


def panels(
    results: Sequence[xr.Dataset],
    titles: Sequence[str] | None = None,
    *,
    fig: Figure | None = None,
    columns: int | None = None,
    mask: str | None = None,
) -> Figure:
    """Heatmaps side by side on one colour scale with one colour bar.

    Args:
        results: comparisons of the same measure.
        titles: one for each panel.
        fig: empty figure to draw into at its own size; a new one as wide as a paper's column
            (one panel) or page (more) if None.
        columns: panels in a row; by default up to three, four in a square.
        mask: cells to grey out; see `heatmap`.

    Returns:
        The figure; its axes are the panels in order.

    Raises:
        UserError: no results, results of different measures, differences beside similarities, or
            as many titles as there are not results.
    """
    results = list(results)
    require(results, "panels expects at least one comparison result; got none")
    require(
        titles is None or len(titles) == len(results),
        f"panels expects a title for each of {len(results)} results; got {len(titles or ())}",
    )
    require(columns is None or columns >= 1, f"panels expects columns of 1 or more; got {columns}")
    count = len(results)
    columns = min(columns or (count if count <= 3 else math.ceil(math.sqrt(count))), count)
    own = fig is None
    if fig is None:
        fig = _figure(ONE_COLUMN if count == 1 else TWO_COLUMNS)
    elif fig.get_layout_engine() is None:
        fig.set_layout_engine("compressed")
    grid = fig.subplots(math.ceil(count / columns), columns, squeeze=False)
    axes = list(grid.flat)
    for ax in axes[count:]:
        ax.remove()
    finish = _heatmaps(axes[:count], results, titles, columns, measure_label(results), mask)
    _settle(fig, finish, resize=own)
    return fig


def clean_vs_attacked(results_by_name: Mapping[str, Mapping[str, xr.Dataset]]) -> Figure:
    """What an attack does to the representations of networks, in one row for a paper's page.

    A heatmap (clean × attacked) for each network, on one colour scale; then the diagonals of
    all, with their intervals and the control of random noise of the same size.

    Args:
        results_by_name: for each network's name its comparisons by condition: one of clean
            against an attack and, where there is one, of clean against "noise", as in
            {"standard": {"adv": ..., "noise": ...}, "adversarially trained": {...}}.

    Returns:
        The figure, 7 inches wide; its axes are the heatmaps in order, then the curves.

    Raises:
        UserError: a network without exactly one attack, or layers that differ between networks.
    """
    require(results_by_name, "clean_vs_attacked expects at least one network; got none")
    attacks: list[xr.Dataset] = []
    curves: list[xr.Dataset] = []
    labels: list[str] = []
    for name, results in results_by_name.items():
        attacked = [result for result in results.values() if not is_control(result)]
        require(
            len(attacked) == 1,
            f"clean_vs_attacked expects one attack for each network; got {len(attacked)} for "
            f"{name} ({', '.join(results) or 'nothing'}); choose one",
        )
        attacks += attacked
        for result in results.values():
            curves.append(result)
            labels.append("noise control" if is_control(result) else name)
    fig = _figure(TWO_COLUMNS)
    axes = list(fig.subplots(1, len(attacks) + 1))
    # The curves' axis next to the colour bar names the same scale.
    finish = _heatmaps(axes[:-1], attacks, list(results_by_name), len(attacks), "")
    diagonal(curves, axes[-1], labels=labels)
    axes[-1].set_title("diagonal (same layer)", fontsize=LABEL_SIZE, pad=4)
    axes[-1].set_box_aspect(1)
    _settle(fig, finish, resize=True)
    return fig


def _figure(width: float) -> Figure:
    # Far too high at first, so that the width alone decides the panels' size; see _settle.
    fig = Figure(figsize=(width, 3 * width))
    fig.set_layout_engine("compressed", w_pad=_PAD, h_pad=_PAD)
    return fig


def _heatmaps(
    axes: Sequence[Axes],
    results: Sequence[xr.Dataset],
    titles: Sequence[str] | None,
    columns: int,
    label: str,
    mask: str | None = None,
) -> Callable[[], None]:
    """Draw the panels; returns what words their labels once the panels have their final size."""
    matrices = [matrix(result) for result in results]
    differ = is_difference(results)
    norm = scale(matrices, None, None, about_0=differ)
    cmap = colormap(DIVERGING if differ else SEQUENTIAL)
    texts: Sequence[str | None] = titles or [None] * len(results)
    for place, (ax, result, values) in enumerate(zip(axes, results, matrices, strict=True)):
        draw(ax, result, values, norm, cmap, True, "auto", texts[place], mask=mask)
        # Names that the neighbour shows already are left out.
        if place % columns and layers(result, "x") == layers(results[place - 1], "x"):
            ax.tick_params(axis="y", which="both", labelleft=False)
        below = place + columns
        if below < len(results) and layers(result, "y") == layers(results[below], "y"):
            ax.tick_params(axis="x", which="both", labelbottom=False)
    corner = axes[min(columns, len(axes)) - 1]
    bar = add_colorbar(corner, matrices, label, mask=mask)

    def finish() -> None:
        fit(bar.ax.yaxis.label, wordings(label), side_points(corner, "y"))
        for ax, result, title in zip(axes, results, texts, strict=True):
            name_sides(ax, result, title)

    return finish


def _settle(fig: Figure, finish: Callable[[], None], *, resize: bool) -> None:
    """Lay out, word the labels for the sizes found, and cut the figure to what is drawn."""
    engine = fig.get_layout_engine()
    assert engine is not None
    for _ in range(2):
        engine.execute(fig)
        for ax in fig.axes:
            relabel(ax.xaxis)
            relabel(ax.yaxis)
        finish()
        engine.execute(fig)
        if resize:
            box = fig.get_tightbbox()
            fig.set_size_inches(fig.get_size_inches()[0], box.height + 2 * _PAD + 0.01)
