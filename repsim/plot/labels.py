"""Readable layer names on an axis: all of them where they fit, the network's stages elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.text import Text
from matplotlib.ticker import Formatter, Locator

TICK_SIZE = 7  # points: legible at a paper's column width
LABEL_SIZE = 8
LINE_HEIGHT = 1.2  # height of a line of text over its font size

LAYER_LABELS = ("auto", "all", "stages", "none")


@dataclass(frozen=True)
class Stage:
    """Consecutive layers [start, stop) that belong together."""

    label: str
    start: int
    stop: int


def stages(names: Sequence[str]) -> list[Stage]:
    """The stages of a network, read from its layers' names in execution order.

    Layers whose names begin alike form a stage (`layer1.0.conv1`, `layer1.1` -> `layer1`); a
    prefix that nearly every layer has is split by its next component (`stages.0`, `stages.1`).
    The single layers before the first stage are the `stem`. A list without any structure in its
    names gives no stages.
    """
    found = _split([name.partition("@")[0].split(".") for name in names], 0, 1)
    if all(stage.stop - stage.start == 1 for stage in found):
        return []
    single = [stage.stop - stage.start == 1 for stage in found]
    first, last = single.index(False), len(single) - 1 - single[::-1].index(False)
    middle = found[first : last + 1]
    if first:
        middle = [Stage("stem", 0, found[first].start), *middle]
    if last + 1 < len(found):
        middle.append(Stage(found[-1].label, found[last].stop, len(names)))
    return middle if len(middle) > 1 else []


def _split(parts: list[list[str]], offset: int, depth: int) -> list[Stage]:
    """Runs of equal prefixes of `depth` components; a run that is most of the network deeper."""
    found: list[Stage] = []
    start = offset
    for prefix, group in groupby(parts, key=lambda part: part[:depth]):
        run = list(group)
        deeper = _deeper(run, start, depth) if len(run) > 0.6 * len(parts) else []
        # A bare number says nothing without the name before it.
        label = ".".join(prefix[-2:] if prefix[-1].isdigit() else prefix[-1:])
        found += deeper or [Stage(label, start, start + len(run))]
        start += len(run)
    return found


def _deeper(run: list[list[str]], start: int, depth: int) -> list[Stage]:
    if all(len(part) <= depth for part in run):
        return []
    found = _split(run, start, depth + 1)
    return found if 1 < len(found) <= len(run) / 2 else []


class _LayerLocator(Locator):
    """Tick places of layer labels, decided when drawn: only then is the axis' length known."""

    def __init__(self, names: Sequence[str], mode: str) -> None:
        self.names = list(names)
        self.mode = mode
        self.stages = stages(names)
        self.labels: dict[float, str] = {}
        self._dense = True

    def dense(self) -> bool:
        """Whether every layer's name fits."""
        if self.mode == "auto":
            need = TICK_SIZE * LINE_HEIGHT
            # Stage names are shorter and leave the axis longer; without this margin the next
            # pass of the layout would go back to the names that did not fit.
            self._dense = self._points_per_layer() >= (need if self._dense else 1.3 * need)
            return self._dense
        return self.mode == "all"

    def retry(self) -> None:
        """Forget that the names did not fit."""
        self._dense = True

    def _points_per_layer(self) -> float:
        assert isinstance(self.axis, Axis)
        box = self.axis.axes.bbox
        pixels = box.width if isinstance(self.axis, XAxis) else box.height
        low, high = sorted(self.axis.get_view_interval())
        figure = self.axis.axes.get_figure(root=True)
        assert figure is not None
        # An axis collapsed by a layout that failed still has a length.
        return max(float(pixels / figure.dpi * 72), 1e-3) / max(high - low, 1e-9)

    def __call__(self) -> list[float]:
        if self.mode == "none":
            self.labels = {}
        elif self.dense():
            self.labels = {float(place): name for place, name in enumerate(self.names)}
        else:
            self.labels = self._sparse(TICK_SIZE * LINE_HEIGHT / self._points_per_layer())
        return list(self.labels)

    def _sparse(self, distance: float) -> dict[float, str]:
        """Labels at least `distance` layers apart: of the stages, the largest first."""
        if not self.stages:
            step = max(1, math.ceil(distance))
            return {float(i): self.names[i] for i in range(0, len(self.names), step)}
        chosen: dict[float, str] = {}
        for stage in sorted(self.stages, key=lambda stage: stage.start - stage.stop):
            centre = (stage.start + stage.stop - 1) / 2
            if all(abs(centre - other) >= distance for other in chosen):
                chosen[centre] = stage.label
        return dict(sorted(chosen.items()))

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return self()


class _BoundaryLocator(Locator):
    """Ticks between stages where the stages' names stand."""

    def __init__(self, layers: _LayerLocator) -> None:
        self.layers = layers

    def __call__(self) -> list[float]:
        if self.layers.mode == "none" or self.layers.dense() or not self.layers.stages:
            return []
        return [stage.stop - 0.5 for stage in self.layers.stages[:-1]]

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return self()


class _LayerFormatter(Formatter):
    def __init__(self, layers: _LayerLocator) -> None:
        self.layers = layers

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.layers.labels.get(float(x), "")


def label_axis(axis: Axis, names: Sequence[str], mode: str) -> None:
    """Name the layers 0, 1, ... on an axis: all names, or stages with ticks between them."""
    locator = _LayerLocator(names, mode)
    axis.set_major_locator(locator)
    axis.set_major_formatter(_LayerFormatter(locator))
    axis.set_minor_locator(_BoundaryLocator(locator))
    axis.remove_overlapping_locs = False
    rotation = 90 if isinstance(axis, XAxis) else 0
    axis.set_tick_params(
        which="major", length=0, pad=5, labelsize=TICK_SIZE, labelrotation=rotation
    )
    axis.set_tick_params(which="minor", length=4, width=0.6)


def relabel(axis: Axis) -> None:
    """Let an axis try again whether all names fit: after a change of its length."""
    locator = axis.get_major_locator()
    if isinstance(locator, _LayerLocator):
        locator.retry()


def fit(text: Text, candidates: Iterator[str], points: float) -> None:
    """Give a text the first of its candidate wordings that is at most `points` long."""
    figure = text.get_figure(root=True)
    assert figure is not None
    for candidate in candidates:
        text.set_text(candidate)
        box = text.get_window_extent()
        length = box.height if text.get_rotation() % 180 == 90 else box.width
        if length / figure.dpi * 72 <= points:
            return


def wordings(*parts: str) -> Iterator[str]:
    """Ever shorter wordings: on one line, a line a part, two lines a part, the middle left out."""
    parts = tuple(part for part in parts if part)
    yield " · ".join(parts)
    yield "\n".join(parts)
    longest = max(map(len, parts), default=0)
    for length in range(longest, 8, -1):
        yield "\n".join(two_lines(elide(part, length), longest=length * 11 // 20) for part in parts)


def two_lines(text: str, longest: int) -> str:
    """The text broken once, at the separator nearest to its middle, if it is too long."""
    if len(text) <= longest:
        return text
    middle = len(text) / 2
    breaks = [place for place in range(1, len(text)) if text[place - 1] in " -_./,"]
    place = min(breaks, key=lambda place: abs(place - middle), default=round(middle))
    if abs(place - middle) > len(text) / 5:
        place = round(middle)
    return f"{text[:place].rstrip(' ')}\n{text[place:]}"


def elide(text: str, length: int) -> str:
    """The text with its middle left out where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def side_points(ax: Axes, axis_name: str) -> float:
    """Present length of an axes' side in points."""
    ax.apply_aspect()
    box = ax.bbox
    pixels = box.width if axis_name == "x" else box.height
    figure = ax.get_figure(root=True)
    assert figure is not None
    return float(pixels / figure.dpi * 72)
