"""Numbers with intervals as points: differences that decide, networks by two numbers, accuracies.

Every function takes `ax` and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib.axes import Axes

from repsim.plot.heatmaps import current
from repsim.plot.labels import LABEL_SIZE, TICK_SIZE, elide
from repsim.plot.study import bare, dress


@dataclass(frozen=True)
class Point:
    """A number with its interval, in one or in two directions.

    Attributes:
        label: what it is.
        x: the number.
        x_interval: its 95% interval; None where there is none.
        y, y_interval: of the other direction, where there is one.
        color, marker, hollow: as of `repsim.plot.study.Line`.
        paper: what the paper has for x; None where it has none.
        note: a word beside the point.
    """

    label: str
    x: float
    x_interval: tuple[float, float] | None = None
    y: float = 0.0
    y_interval: tuple[float, float] | None = None
    color: str = "0.2"
    marker: str = "o"
    hollow: bool = False
    paper: float | None = None
    note: str = ""


def differences(
    groups: Mapping[str, Mapping[str, Sequence[Point]]],
    ax: Axes | None = None,
    *,
    margin: float,
    label: str,
) -> Axes:
    """Differences with intervals against 0 and the margin stated beforehand.

    Args:
        groups: by heading and question, from top to bottom; x of each point is the difference,
            its label what tells it from the others of the same question, such as the scheme.
        ax: axes to draw into; pyplot's current axes if None.
        margin: differences within ± this mean nothing; shaded.
        label: of the differences.

    Returns:
        The axes.
    """
    ax = current(ax)
    ax.axvspan(-margin, margin, color="0.92", linewidth=0, zorder=0)
    ax.axvline(0, color="0.4", linewidth=0.7, zorder=1)
    place, seen = 0.0, set[str]()
    ticks: list[float] = []
    words: list[str] = []
    for heading, questions in groups.items():
        # Left of the axis, as the questions are.
        ax.annotate(
            heading, (0, place), xycoords=("axes fraction", "data"), xytext=(-4, 0), ha="right",
            va="center", textcoords="offset points", fontsize=TICK_SIZE, fontweight="bold",
        )  # fmt: skip
        for question, points in questions.items():
            place += 1.15
            ticks.append(place)
            words.append("\n".join(wrap(question, 62)))
            apart = 0.56 / max(1, len(points) - 1)
            for i, point in enumerate(points):
                _dot(ax, point, place - 0.28 * (len(points) > 1) + i * apart,
                     legend=point.label not in seen)  # fmt: skip
                seen.add(point.label)
        place += 1.3
    ax.set_ylim(place - 0.6, -0.6)
    ax.set_yticks(ticks, words, fontsize=TICK_SIZE)
    ax.set_xlabel(label, fontsize=LABEL_SIZE)
    bare(ax)
    return _legend_above(ax)


def networks_as_points(
    points: Sequence[Point],
    ax: Axes | None = None,
    *,
    x: str,
    y: str,
    title: str | None = None,
    unit: bool = True,
) -> Axes:
    """Networks, or pairs of them, by two numbers with their intervals.

    Args:
        points: points of one label have one entry in the legend.
        ax: axes to draw into; pyplot's current axes if None.
        x, y: what the numbers are.
        title: text above the axes.
        unit: both numbers lie between 0 and 1.

    Returns:
        The axes.
    """
    ax = current(ax)
    seen: set[str] = set()
    for point in points:
        _dot(ax, point, point.y, legend=point.label not in seen)
        seen.add(point.label)
        if point.note:
            ax.annotate(
                point.note, (point.x, point.y), xytext=(4, 3), textcoords="offset points",
                fontsize=TICK_SIZE - 1.5, color="0.25",
            )  # fmt: skip
    if unit:
        ax.set_ylim(min(-0.02, ax.get_ylim()[0]), 1.03)
    ax.set_xlabel(x, fontsize=LABEL_SIZE)
    dress(ax, y, title, unit=False)
    return ax


def accuracies(
    rows: Mapping[str, Sequence[Point]], ax: Axes | None = None, *, label: str = "accuracy"
) -> Axes:
    """Accuracies of networks under several conditions, a row a network.

    Args:
        rows: by network, top to bottom; a point a condition, x the accuracy; points of one label
            have one entry in the legend.
        ax: axes to draw into; pyplot's current axes if None.
        label: of the accuracies.

    Returns:
        The axes.
    """
    ax = current(ax)
    seen: set[str] = set()
    for place, points in enumerate(rows.values()):
        ax.axhline(place, color="0.9", linewidth=0.6, zorder=0)
        for point in points:
            _dot(ax, point, place, legend=point.label not in seen)
            seen.add(point.label)
    ax.set_yticks(range(len(rows)), [elide(name, 24) for name in rows], fontsize=TICK_SIZE)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel(label, fontsize=LABEL_SIZE)
    bare(ax)
    return _legend_above(ax)


def _legend_above(ax: Axes) -> Axes:
    count = len(ax.get_legend_handles_labels()[1])
    if count:
        ax.legend(
            fontsize=TICK_SIZE, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0),
            ncols=min(count, 3 if ax.bbox.width < 400 else 8), handletextpad=0.2,
            borderaxespad=0.2, columnspacing=1.2,
        )  # fmt: skip
    return ax


def _dot(ax: Axes, point: Point, y: float, *, legend: bool = False) -> None:
    for ends, along in ((point.x_interval, True), (point.y_interval, False)):
        if ends is not None:
            xs, ys = (ends, (y, y)) if along else ((point.x, point.x), ends)
            ax.plot(xs, ys, color=point.color, linewidth=1.0, zorder=2, solid_capstyle="butt")
    if point.paper is not None:
        ax.plot(
            [point.paper], [y], "D", color="0.25", markerfacecolor="none", markersize=3.6,
            markeredgewidth=0.7, zorder=4,
        )  # fmt: skip
    ax.plot(
        [point.x], [y], point.marker, color=point.color, markersize=4, markeredgewidth=0.9,
        markerfacecolor="white" if point.hollow else point.color, zorder=3, linestyle="",
        label=point.label if legend else "_nolegend_",
    )  # fmt: skip
