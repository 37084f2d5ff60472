"""The figures of a study: similarity over depth and over distance; see also `repsim.plot.points`.

Every function takes `ax` and returns it. A scheme keeps its colour and a scenario its face in all
figures: standard training is hollow, adversarial training filled, a control dashed grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from repsim.plot.curves import COLORS, MARKERS
from repsim.plot.heatmaps import current
from repsim.plot.labels import LABEL_SIZE, TICK_SIZE, label_axis, stages
from repsim.plot.result import require

Values = NDArray[np.float64]
CONTROL = "0.45"
# Okabe and Ito's colours again, by name: a scheme looks the same in every figure of every study.
_SCHEMES = ("sl", "scl", "cl", "rocl", "clead", "trades")


@dataclass(frozen=True)
class Line:
    """A curve: one network, or the mean of several.

    Attributes:
        label: in the legend; lines of one label have one entry.
        value: (n,).
        lower, upper: (n,) ends of its 95% interval; None where there is none.
        color: any of matplotlib's.
        marker: the same.
        hollow: markers with a white face, as standard training has.
        control: dashed, without weight.
        faint: one of many behind a mean.
    """

    label: str
    value: Values
    lower: Values | None = None
    upper: Values | None = None
    color: str = "0.2"
    marker: str = "o"
    hollow: bool = False
    control: bool = False
    faint: bool = False


def scheme_color(scheme: str) -> str:
    """The colour of a scheme; those that are not known share black."""
    return COLORS[_SCHEMES.index(scheme)] if scheme in _SCHEMES else "#222222"


def scheme_marker(scheme: str) -> str:
    """The marker of a scheme."""
    return MARKERS[_SCHEMES.index(scheme)] if scheme in _SCHEMES else "X"


def over_depth(
    lines: Sequence[Line],
    names: Sequence[str],
    ax: Axes | None = None,
    *,
    label: str = "linear CKA",
    title: str | None = None,
) -> Axes:
    """Curves over the layers of a network, in execution order.

    Args:
        lines: each with a value a layer.
        names: the layers.
        ax: axes to draw into; pyplot's current axes if None.
        label: of the values.
        title: text above the axes.

    Returns:
        The axes.

    Raises:
        UserError: a line of another length.
    """
    for line in lines:
        require(
            len(line.value) == len(names),
            f"a curve over depth expects a value for each of {len(names)} layers; {line.label} "
            f"has {len(line.value)}",
        )
    ax = current(ax)
    _curves(ax, lines, np.arange(float(len(names))))
    ax.set_xlim(-0.5, len(names) - 0.5)
    label_axis(ax.xaxis, names, "auto")
    for stage in stages(names)[:-1]:
        ax.axvline(stage.stop - 0.5, color="0.88", linewidth=0.6, zorder=0)
    ax.set_xlabel("layer", fontsize=LABEL_SIZE)
    return dress(ax, label, title)


def over_distance(
    lines: Sequence[Line],
    ax: Axes | None = None,
    *,
    label: str = "linear CKA",
    title: str | None = None,
) -> Axes:
    """Curves over the distance |i − j| of two layers of one network, as a part of its L layers.

    Args:
        lines: each with a value for the distances 0 to L - 1.
        ax: axes to draw into; pyplot's current axes if None.
        label: of the values.
        title: text above the axes.

    Returns:
        The axes; beyond 0.5, shaded, is what long-range similarity is the mean of.
    """
    ax = current(ax)
    ax.axvspan(0.5, 1, color="0.95", linewidth=0, zorder=0)
    for line in lines:
        _curves(ax, [line], np.arange(len(line.value)) / len(line.value))
    ax.set_xlim(0, 1)
    ax.set_xlabel("distance |i − j| / L of two layers", fontsize=LABEL_SIZE)
    return dress(ax, label, title)


def _curves(ax: Axes, lines: Sequence[Line], places: Values) -> None:
    """Controls behind, and last in the legend."""
    seen = {str(line.get_label()) for line in ax.lines}
    for line in sorted(lines, key=lambda one: one.control):
        thin = line.control or line.faint
        if line.lower is not None and line.upper is not None and not line.faint:
            ax.fill_between(
                places, line.lower, line.upper, color=line.color, linewidth=0,
                alpha=0.10 if line.control else 0.16,
            )  # fmt: skip
        ax.plot(
            places,
            line.value,
            color=line.color,
            linestyle="--" if line.control else "-",
            linewidth=0.6 if line.faint else 1.0 if line.control else 1.3,
            alpha=0.45 if line.faint else 1.0,
            marker="" if line.faint else line.marker,
            markersize=3 if line.control else 3.6,
            markevery=max(1, len(places) // 12),
            markerfacecolor="white" if line.hollow or line.control else line.color,
            markeredgewidth=0.8,
            label="_nolegend_" if line.label in seen else line.label,
            zorder=2 if thin else 3,
        )
        seen.add(line.label)


def dress(ax: Axes, label: str, title: str | None, *, unit: bool = True) -> Axes:
    """Label, ticks and legend of a small figure; a scale of 0 to 1 where the values fit it."""
    if unit:
        low, high = ax.dataLim.intervaly
        if high <= 1.2:
            ax.set_ylim(min(0.0, low) - 0.02, max(1.0, high) + 0.02)
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.set_ylabel(label, fontsize=LABEL_SIZE)
    if title:
        ax.set_title(title, fontsize=LABEL_SIZE, pad=4)
    bare(ax)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(
            fontsize=TICK_SIZE, frameon=False, handlelength=2.2, borderaxespad=0.3,
            labelspacing=0.3,
        )  # fmt: skip
    return ax


def bare(ax: Axes) -> Axes:
    """Only the two axes that carry ticks, thin."""
    ax.tick_params(axis="both", which="major", labelsize=TICK_SIZE, width=0.6, length=2, pad=2)
    for side, spine in ax.spines.items():
        spine.set_linewidth(0.6)
        spine.set_visible(side in ("left", "bottom"))
    return ax
