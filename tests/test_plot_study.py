"""Figures of a study: what is drawn where, and what tells it apart without colour."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from repsim.errors import UserError
from repsim.plot.points import Point, accuracies, differences, networks_as_points
from repsim.plot.study import Line, over_depth, over_distance, scheme_color, scheme_marker

NAMES = ["relu", "layer1.0", "layer1.1", "avgpool"]
VALUES = np.array([0.9, 0.7, 0.5, 0.1])


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(4, 3)).subplots()


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_curves_over_depth_have_intervals_and_looks(ax: Axes) -> None:
    lines = [
        Line("noise", VALUES + 0.05, control=True, color="0.5", marker=""),
        Line("sl", VALUES, VALUES - 0.1, VALUES + 0.1, "#0072B2", "o", hollow=True),
        Line("sl", VALUES / 2, color="#0072B2", marker="s"),
    ]
    assert over_depth(lines, NAMES, ax, label="CKA", title="t") is ax
    first, second, control = (line for line in ax.lines if len(line.get_xdata()) == 4)
    np.testing.assert_allclose(first.get_ydata(), VALUES)
    np.testing.assert_allclose(second.get_ydata(), VALUES / 2)
    assert (first.get_markerfacecolor(), second.get_markerfacecolor()) == ("white", "#0072B2")
    assert (first.get_linestyle(), control.get_linestyle()) == ("-", "--")
    assert labels(ax) == ["sl", "noise"]  # one entry a label, controls last
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == pytest.approx((0.0, 1.0))
    assert ax.get_xlim() == (-0.5, 3.5)
    assert ax.get_ylim() == pytest.approx((-0.02, 1.02))
    assert (ax.get_ylabel(), ax.get_title()) == ("CKA", "t")


def test_values_below_0_are_inside_the_axes(ax: Axes) -> None:
    over_depth([Line("a", VALUES - 0.4)], NAMES, ax)
    assert ax.get_ylim()[0] < -0.3


def test_a_curve_of_another_length_is_refused(ax: Axes) -> None:
    with pytest.raises(UserError, match="a value for each of 3 layers; a has 4"):
        over_depth([Line("a", VALUES)], NAMES[:3], ax)


def test_distance_is_a_part_of_the_depth(ax: Axes) -> None:
    over_distance([Line("a", VALUES), Line("b", np.ones(10))], ax)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 0.25, 0.5, 0.75])
    assert ax.lines[1].get_xdata()[-1] == pytest.approx(0.9)
    assert ax.patches[0].get_x() == 0.5  # beyond half of the layers: long range


def test_differences_stand_below_their_question(ax: Axes) -> None:
    groups = {
        "1. holds": {"q": [Point("sl", 0.3, (0.2, 0.4), paper=0.1), Point("cl", -0.1)]},
        "2. open": {"r": [Point("sl", 0.0)], "s": []},
    }
    differences(groups, ax, margin=0.02, label="difference")
    band = ax.patches[0]
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.02, 0.04))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["q", "r", "s"]
    assert [text.get_text() for text in ax.texts] == ["1. holds", "2. open"]
    low, high = ax.get_ylim()
    assert low > high  # from top to bottom
    first, second = ax.texts
    ticks = ax.get_yticks()
    assert first.xy[1] < ticks[0] < second.xy[1] < ticks[1]
    found = {(line.get_xdata()[0], line.get_marker()) for line in ax.lines}
    assert {(0.3, "o"), (-0.1, "o"), (0.1, "D"), (0.0, "o")} <= found
    whisker = next(line for line in ax.lines if list(line.get_xdata()) == [0.2, 0.4])
    assert ticks[0] - 0.5 < whisker.get_ydata()[0] < ticks[0] + 0.5
    assert labels(ax) == ["sl", "cl"]


def test_points_have_intervals_in_both_directions(ax: Axes) -> None:
    points = [Point("st", 0.2, (0.1, 0.3), 0.5, (0.4, 0.6), hollow=True, note="ε 2/255"),
              Point("at", 0.8, None, 0.9, None, marker="s")]  # fmt: skip
    networks_as_points(points, ax, x="similarity", y="accuracy")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
    for wanted in (([0.1, 0.3], [0.5, 0.5]), ([0.2, 0.2], [0.4, 0.6]), ([0.8], [0.9])):
        assert wanted in drawn
    assert [text.get_text() for text in ax.texts] == ["ε 2/255"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("similarity", "accuracy")
    assert labels(ax) == ["st", "at"]
    assert len(ax.lines) == 4  # no whisker where there is no interval


def test_accuracies_have_a_row_a_network(ax: Axes) -> None:
    rows = {"a": [Point("clean", 0.9, (0.8, 0.95)), Point("pgd", 0.1)], "b": [Point("clean", 0.7)]}
    accuracies(rows, ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert labels(ax) == ["clean", "pgd"]
    places = {(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines}
    assert {(0.9, 0), (0.1, 0), (0.7, 1)} <= places
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_schemes_differ_in_colour_and_marker() -> None:
    schemes = ["sl", "scl", "cl", "rocl", "clead", "trades", "mine"]
    assert len({scheme_color(one) for one in schemes}) == len(schemes)
    assert len({scheme_marker(one) for one in schemes}) == len(schemes)
    assert to_hex(to_rgb(scheme_color("sl"))) == "#0072b2"
