"""The diagonal of comparisons, same layer against same layer, as curves over depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from repsim.plot.heatmaps import current
from repsim.plot.labels import (
    LABEL_SIZE,
    TICK_SIZE,
    fit,
    label_axis,
    side_points,
    stages,
    wordings,
)
from repsim.plot.result import (
    is_control,
    is_difference,
    layers,
    matrix,
    measure_label,
    require,
    words,
)

# Okabe and Ito's colours, told apart by every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def diagonal(
    results: xr.Dataset | Sequence[xr.Dataset],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> Axes:
    """Similarity of each layer with itself (clean against attacked) over depth.

    Intervals (`lower`, `upper`) are shaded where a result has them. Controls (condition
    "noise") are dashed grey. A network keeps its marker in all its curves.

    Args:
        results: one comparison or several, of the same measure and layers, each with the same
            layers on both sides.
        ax: axes to draw into; pyplot's current axes if None.
        labels: a name for each result in the legend; by default what tells them apart.

    Returns:
        The axes.

    Raises:
        UserError: results whose layers do not agree, or as many labels as there are not results.
    """
    results = [results] if isinstance(results, xr.Dataset) else list(results)
    require(results, "diagonal expects at least one comparison result; got none")
    label = measure_label(results)
    names = layers(results[0], "x")
    for result in results:
        require(
            layers(result, "x") == names == layers(result, "y"),
            "diagonal expects the same layers on both sides of all results; got "
            f"{len(names)} layers in the first result's rows and {len(layers(result, 'x'))} × "
            f"{len(layers(result, 'y'))} in {words(result, 'x', 'model') or 'another'}; "
            "choose the same --layers",
        )
    labels = _default_labels(results) if labels is None else list(labels)
    require(
        len(labels) == len(results),
        f"diagonal expects a label for each of {len(results)} results; got {len(labels)}",
    )
    ax = current(ax)
    networks = list(dict.fromkeys(_network(result) for result in results))
    colors = itertools.cycle(COLORS)
    # The controls come last, and so stand last in the legend.
    for result, text in sorted(zip(results, labels, strict=True), key=lambda it: is_control(it[0])):
        _curve(
            ax,
            result,
            label="_nolegend_" if text in _labels_of(ax) else text,
            color="0.5" if is_control(result) else next(colors),
            marker=MARKERS[networks.index(_network(result)) % len(MARKERS)],
        )
    dress(ax, names, label, about_0=is_difference(results))
    if len(results) > 1:
        ax.legend(fontsize=TICK_SIZE, frameon=False, handlelength=2.2, borderaxespad=0.3)
    return ax


def _labels_of(ax: Axes) -> list[str]:
    return [str(line.get_label()) for line in ax.lines]


def _curve(ax: Axes, result: xr.Dataset, *, label: str, color: str, marker: str) -> None:
    values = np.diagonal(matrix(result))
    depth = np.arange(len(values))
    control = is_control(result)
    if "lower" in result and "upper" in result:
        low, high = (np.diagonal(matrix(result, name)) for name in ("lower", "upper"))
        ax.fill_between(depth, low, high, color=color, alpha=0.2, linewidth=0)
    ax.plot(
        depth,
        values,
        color=color,
        linestyle="--" if control else "-",
        linewidth=1.0 if control else 1.3,
        marker=marker,
        markersize=3,
        # A marker a layer would hide the curve of a deep network.
        markevery=max(1, len(values) // 12),
        markerfacecolor="white" if control else color,
        markeredgewidth=0.7,
        label=label,
        zorder=2 if control else 3,
    )


def dress(ax: Axes, names: list[str], label: str, *, about_0: bool) -> None:
    """Layers in order below, stages apart, values from 0 to 1 on the left."""
    ax.set_xlim(-0.5, len(names) - 0.5)
    label_axis(ax.xaxis, names, "auto")
    for stage in stages(names)[:-1]:
        ax.axvline(stage.stop - 0.5, color="0.85", linewidth=0.6, zorder=0)
    low, high = ax.dataLim.intervaly
    if about_0:
        ax.axhline(0, color="0.6", linewidth=0.6, zorder=1)
    elif high <= 1.2:
        ax.set_ylim(min(0.0, low) - 0.02, max(1.0, high) + 0.02)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.tick_params(axis="y", labelsize=TICK_SIZE, width=0.6, length=2, pad=2)
    for side, spine in ax.spines.items():
        spine.set_linewidth(0.6)
        spine.set_visible(side in ("left", "bottom"))
    ax.set_xlabel("layer", fontsize=LABEL_SIZE)
    ax.yaxis.label.set_fontsize(LABEL_SIZE)
    fit(ax.yaxis.label, wordings(label), side_points(ax, "y"))


def _network(result: xr.Dataset) -> tuple[str, str]:
    return words(result, "x", "model"), words(result, "y", "model")


def _default_labels(results: Sequence[xr.Dataset]) -> list[str]:
    """What tells the results apart: the condition, the model or both."""
    conditions = [_pair(result, "condition") for result in results]
    models = [_pair(result, "model") for result in results]
    if len(set(models)) == 1:
        return conditions
    attacks = {
        condition
        for condition, result in zip(conditions, results, strict=True)
        if not is_control(result)
    }
    return [
        condition
        if is_control(result)
        else model
        if len(attacks) == 1
        else f"{condition} · {model}"
        for condition, model, result in zip(conditions, models, results, strict=True)
    ]


def _pair(result: xr.Dataset, word: str) -> str:
    """Both sides in a word: "adv" for clean against adv, one name where the sides agree."""
    x, y = words(result, "x", word), words(result, "y", word)
    return y if x in (y, "clean") else f"{x} / {y}"
