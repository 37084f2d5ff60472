"""Accuracy of probes over the layers of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repsim.plot.curves import COLORS, dress
from repsim.plot.heatmaps import current
from repsim.plot.labels import TICK_SIZE
from repsim.plot.result import require

if TYPE_CHECKING:
    import pandas as pd

_SERIES = ("network", "train", "test", "attack")
_WIDTH, _HEIGHT = 7.0, 3.2  # inches: a paper's page
_MOST_MARKERS = 12
# Line and marker of what an image was attacked against; told apart without colour too.
_STYLES: dict[str, dict[str, Any]] = {
    "clean": {"linestyle": "-", "marker": "o"},
    "control": {"linestyle": (0, (4, 2)), "marker": "", "linewidth": 0.9},
    "transfer": {"linestyle": (0, (6, 1.5, 1, 1.5)), "marker": "s"},
    "adaptive": {"linestyle": (0, (1, 1)), "marker": "X", "linewidth": 1.6},
}


def probe_curves(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    labels: Sequence[str] | None = None,
    chance: float | None = None,
) -> Axes:
    """Accuracy of the probes of each layer, in execution order, with shaded intervals.

    A line for each network, training, test condition and target of the attack. What an attack was
    aimed at decides line and marker: attacked against the network (transfer) is dash-dotted with
    squares, against the probe itself (adaptive) dotted with crosses; clean is solid with circles,
    noise thin and dashed. Colours tell networks and trainings apart, or of a single one the tests.

    Args:
        table: `repsim.probe.ProbeReport.table`, of one network or several together.
        ax: axes to draw into; pyplot's current axes if None.
        labels: a name for each line, in the table's order; by default what tells them apart.
        chance: accuracy of guessing, drawn as a thin line.

    Returns:
        The axes.

    Raises:
        UserError: an empty table, networks with other layers, or as many labels as there are not
            lines.
    """
    require(len(table), "probe_curves expects a table of probes; got an empty one")
    lines = [(_names(key), part) for key, part in table.groupby([*_SERIES], sort=False)]
    names = list(dict.fromkeys(table["layer"]))
    for key, part in lines:
        require(
            list(part["layer"]) == names,
            f"probe_curves expects one row for each of {len(names)} layers in each line; "
            f"{' '.join(map(str, key))} has {len(part)}; draw networks with other layers apart",
        )
    texts = _labels([key for key, _ in lines]) if labels is None else list(labels)
    require(
        len(texts) == len(lines),
        f"probe_curves expects a label for each of {len(lines)} lines; got {len(texts)}",
    )
    ax = current(ax)
    groups = list(dict.fromkeys(key[:2] for key, _ in lines))
    tests = list(dict.fromkeys(key[2:] for key, _ in lines))
    for (key, part), text in zip(lines, texts, strict=True):
        kind = _kind(*key[2:])
        place = groups.index(key[:2]) if len(groups) > 1 else tests.index(key[2:])
        # Of a single network controls are grey, as everywhere.
        grey = kind == "control" and len(groups) == 1
        _line(ax, part, text, "0.5" if grey else COLORS[place % len(COLORS)], _STYLES[kind])
    if chance is not None:
        ax.axhline(chance, color="0.6", linewidth=0.6, zorder=1)
    dress(ax, names, "probe accuracy", about_0=False)
    ax.legend(
        fontsize=TICK_SIZE, frameon=False, handlelength=3.5, borderaxespad=0.3,
        loc="center left", bbox_to_anchor=(1.01, 0.5),
    )  # fmt: skip
    return ax


def probe_figure(
    table: pd.DataFrame, title: str | None = None, chance: float | None = None
) -> Figure:
    """`probe_curves` as a figure of a page's width, with its legend beside it."""
    fig = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    ax = probe_curves(table, fig.add_subplot(), chance=chance)
    if title:
        ax.set_title(title, fontsize=TICK_SIZE + 1)
    return fig


def _line(ax: Axes, part: pd.DataFrame, text: str, color: str, style: dict[str, Any]) -> None:
    depth = list(range(len(part)))
    ax.fill_between(depth, part["lower"], part["upper"], color=color, alpha=0.15, linewidth=0)
    settings = {
        "linewidth": 1.2, "markersize": 4, "markeredgewidth": 0.7, "markerfacecolor": color,
        "markevery": max(1, len(depth) // _MOST_MARKERS), **style,
    }  # fmt: skip
    if style["marker"] == "X":
        settings |= {"markerfacecolor": "white", "markersize": 5.5}
    ax.plot(depth, part["accuracy"], color=color, label=text, zorder=3, **settings)


def _names(key: object) -> tuple[str, str, str, str]:
    """A group's key as what it is."""
    network, train, test, attack = map(str, cast(tuple[object, ...], key))
    return network, train, test, attack


def _kind(test: str, attack: str) -> str:
    if attack != "none":
        return attack
    return "clean" if test == "clean" else "control"


def _labels(keys: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """What tells the lines apart, always with what an attack was aimed at."""
    several = [len({key[i] for key in keys}) > 1 for i in range(2)]
    said = []
    for network, train, test, attack in keys:
        words = [network] if several[0] else []
        words += [f"trained on {train}"] if several[1] else []
        target = {"transfer": " on the network (transfer)", "adaptive": " on the probe (adaptive)"}
        said.append(", ".join([*words, test + target.get(attack, "")]))
    return said
