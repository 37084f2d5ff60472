"""What the drawings of a study have in common: its pairs, its networks, their looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repsim.compare import AllPairs
from repsim.findings import Network
from repsim.plot.curves import COLORS
from repsim.plot.study import Line, over_depth, scheme_color, scheme_marker
from repsim.report.curves import Curve, Side, same_layer
from repsim.report.figures import Drawn, alone, drawn, words_of
from repsim.report.read import Study

CONTROL = "0.45"
ST_COLOR, AT_COLOR = COLORS[4], COLORS[0]  # where a curve is of several schemes
INTERVAL = "shaded: 95% interval over images (jackknife)"


@dataclass(frozen=True)
class Drawing:
    """A study that has similarities, and the folder that its figures go to.

    Attributes:
        study: it.
        folder: for the files.
    """

    study: Study
    folder: Path

    @property
    def pairs(self) -> AllPairs:
        """Everything against everything."""
        assert self.study.similarity is not None
        return self.study.similarity

    def pixels(self) -> bool:
        """Whether sizes of attacks are told in 255ths."""
        sizes = [one.eps for one in self.study.networks if one.eps]
        return all(abs(eps * 255 - round(eps * 255)) < 1e-3 for eps in sizes)

    def alike(
        self, networks: Sequence[Network], condition: str, like: Network | None = None
    ) -> list[Network]:
        """Those compared under that condition that have the layers of the first of them.

        Args:
            networks: to choose from.
            condition: that they need.
            like: the network whose layers they need, instead of the first.
        """
        there = [one for one in networks if condition in self.study.conditions(one.name)]
        if not there:
            return []
        layers = self.study.layers((like or there[0]).name)
        return [one for one in there if self.study.layers(one.name) == layers]

    def same(self, sides: Sequence[tuple[Side, Side]]) -> Curve:
        """See `same_layer`."""
        return same_layer(self.pairs, sides)

    def scheme(self, scheme: str, sides: Sequence[tuple[Side, Side]], scenario: str) -> Line:
        """The mean over sides in the looks of a scheme."""
        return styled(scheme, self.same(sides), scheme, scenario)

    def depth(
        self, name: str, lines: list[Line], depth: Network, caption: str, title: str, label: str
    ) -> Drawn:
        """A figure of curves over the layers of the network `depth`."""
        names = self.study.layers(depth.name)
        return drawn(
            name, caption,
            words_of((line.label, line.value.tolist()) for line in lines if line.label),
            lambda: alone(lambda ax: over_depth(lines, names, ax, label=label, title=title)),
            self.folder,
        )  # fmt: skip


def styled(label: str, curve: Curve, scheme: str, scenario: str) -> Line:
    """A curve in the looks of a scheme and scenario."""
    return Line(
        label, curve.value, curve.lower, curve.upper, scheme_color(scheme), scheme_marker(scheme),
        scenario == "st",
    )  # fmt: skip


def control(label: str, curve: Curve, marker: str = "") -> Line:
    """A curve that others are held against."""
    return Line(label, curve.value, curve.lower, curve.upper, CONTROL, marker, control=True)
