from __future__ import annotations

import itertools
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torchvision
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from repsim.errors import UserError
from repsim.plot import (
    clean_vs_attacked,
    diagonal,
    difference,
    heatmap,
    panels,
    save_figure,
)
from repsim.plot.labels import elide, stages
from repsim.plot.sides import sides_figure, sides_map

TEN = ["relu", *(f"layer{i}.{j}" for i in (1, 2) for j in range(4)), "avgpool"]


@cache
def resnet50_layers() -> tuple[str, ...]:
    """147 real layer names: the stem, every module of every stage, the pooled features."""
    with_modules = torchvision.models.resnet50().named_modules()
    left_out = {"", "bn1", "maxpool", "fc"}
    return tuple(name for name, _ in with_modules if name not in left_out)[:147]


def result(
    rows: list[str] | tuple[str, ...] = TEN,
    columns: list[str] | tuple[str, ...] | None = None,
    *,
    values: np.ndarray | None = None,
    conditions: tuple[str, str] = ("clean", "adv"),
    models: tuple[str, str] = ("ckpt-st", "ckpt-st"),
    interval: float | None = None,
    **attributes: str,
) -> xr.Dataset:
    columns = rows if columns is None else columns
    if values is None:
        depth = np.linspace(0, 1, len(rows))[:, None], np.linspace(0, 1, len(columns))[None]
        values = np.exp(-3 * np.abs(depth[0] - depth[1])) * (1 - 0.6 * depth[0] * depth[1])
    variables = {"similarity": (("x", "y"), values)}
    if interval is not None:
        variables |= {
            "lower": (("x", "y"), values - interval),
            "upper": (("x", "y"), values + interval),
        }
    coordinates = {}
    for side, names, condition, model in zip(
        "xy", (rows, columns), conditions, models, strict=True
    ):
        coordinates[f"{side}_layer"] = (side, list(names))
        coordinates[f"{side}_condition"] = (side, [condition] * len(names))
        coordinates[f"{side}_model"] = (side, [model] * len(names))
    words = {"measure": "cka", "estimator": "debiased", "kernel": "linear", **attributes}
    return xr.Dataset(variables, coords=coordinates, attrs=words)


def study(names: list[str] | tuple[str, ...]) -> dict[str, dict[str, xr.Dataset]]:
    return {
        title: {
            "adv": result(names, models=(model, model), interval=0.03),
            "noise": result(names, models=(model, model), conditions=("clean", "noise")),
        }
        for title, model in (("standard", "ckpt-st"), ("adversarially trained", "ckpt-at"))
    }


def new_axes(size: tuple[float, float] = (4, 4)) -> Axes:
    return Figure(figsize=size, layout="constrained").subplots()


def small_figure() -> Figure:
    figure = Figure(figsize=(2, 2))
    heatmap(result(), figure.subplots())
    return figure


def tick_texts(labels: list[Text]) -> list[str]:
    return [label.get_text() for label in labels if label.get_visible()]


def visible_texts(fig: Figure) -> list[Text]:
    found: list[Text] = []
    for ax in [*fig.axes, *(child for parent in fig.axes for child in parent.child_axes)]:
        found += [ax.title, ax.xaxis.label, ax.yaxis.label]
        found += ax.get_legend().get_texts() if ax.get_legend() else []
        for axis in (ax.xaxis, ax.yaxis):
            # Ticks out of the limits exist too, but are not drawn.
            found += [
                label for tick in axis._update_ticks() for label in (tick.label1, tick.label2)
            ]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def assert_readable(fig: Figure) -> None:
    """No two texts touch, no text covers axes it does not lie in, and none leaves the figure."""
    fig.draw_without_rendering()
    texts = visible_texts(fig)
    boxes = [text.get_window_extent() for text in texts]
    width, height = fig.bbox.width, fig.bbox.height
    for text, box in zip(texts, boxes, strict=True):
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= width + 0.5, text
        assert box.y1 <= height + 0.5, text
    for (a, box), (b, other) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        # Half a point of rounding; Bbox.overlaps counts a common edge.
        overlap_x = min(box.x1, other.x1) - max(box.x0, other.x0)
        overlap_y = min(box.y1, other.y1) - max(box.y0, other.y0)
        assert overlap_x <= 0.7 or overlap_y <= 0.7, (a.get_text(), b.get_text())
    for text, box in zip(texts, boxes, strict=True):
        for ax in fig.axes:
            if text.axes is ax:
                continue
            inside = ax.bbox
            overlap_x = min(box.x1, inside.x1) - max(box.x0, inside.x0)
            overlap_y = min(box.y1, inside.y1) - max(box.y0, inside.y0)
            assert overlap_x <= 0.7 or overlap_y <= 0.7, (text.get_text(), "covers", ax.get_title())


@pytest.fixture(autouse=True)
def nothing_global_changes():
    """Every test: matplotlib's settings stay, and pyplot is left without figures."""
    from matplotlib import pyplot

    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == []


# heatmap


def test_heatmap_returns_the_axes_given_and_names_every_layer():
    ax = new_axes()
    assert heatmap(result(), ax) is ax
    ax.figure.draw_without_rendering()
    assert tick_texts(ax.get_yticklabels()) == TEN
    assert tick_texts(ax.get_xticklabels()) == TEN
    assert ax.get_ylabel() == "clean · ckpt-st"
    assert ax.get_xlabel() == "adv · ckpt-st"
    assert ax.child_axes[0].get_ylabel() == "linear CKA (debiased)"


def test_rows_are_x_and_the_first_layers_meet_at_the_lower_left():
    rows, columns = ["a.0", "a.1", "b.0"], ["c.0", "c.1", "d.0", "d.1", "d.2"]
    values = np.zeros((3, 5))
    values[0, 4] = 1.0  # first row, last column: lower right
    ax = heatmap(result(rows, columns, values=values), new_axes())
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), values)
    fig = ax.figure
    fig.draw_without_rendering()

    def pixel(column: int, row: int) -> np.ndarray:
        return ax.transData.transform((column, row))

    assert tick_texts(ax.get_yticklabels()) == rows
    assert tick_texts(ax.get_xticklabels()) == columns
    assert pixel(0, 0)[0] < pixel(4, 0)[0]
    assert pixel(0, 0)[1] < pixel(0, 2)[1]
    assert image.get_extent() == [-0.5, 4.5, -0.5, 2.5]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[::-1] / 255  # rows from the bottom up, as pixel()
    for column, row in ((4, 0), (0, 2), (0, 0), (4, 2)):
        x, y = pixel(column, row).astype(int)
        wanted = image.cmap(values[row, column])
        np.testing.assert_allclose(drawn[y, x], wanted, atol=0.01)


@pytest.mark.parametrize(
    ("rows", "columns", "square"), [(10, 10, True), (6, 10, True), (4, 10, False)]
)
def test_cells_are_square_unless_the_strip_were_too_thin(rows, columns, square):
    names = [f"layer1.{i}" for i in range(columns)]
    ax = heatmap(result(names[:rows], names), new_axes())
    ax.figure.draw_without_rendering()
    cell = ax.transData.transform((1, 1)) - ax.transData.transform((0, 0))
    assert bool(abs(cell[0] - cell[1]) < 0.01) is square
    assert ax.bbox.width / ax.bbox.height == pytest.approx(
        columns / rows if square else 2.0, rel=1e-3
    )


def test_similarity_scale_is_0_to_1_and_other_measures_have_their_range():
    assert heatmap(result(values=np.full((10, 10), 0.7)), new_axes()).images[0].get_clim() == (0, 1)
    distances = np.linspace(3, 40, 100).reshape(10, 10)
    ax = heatmap(result(values=distances, measure="procrustes", kernel=""), new_axes())
    assert ax.images[0].get_clim() == (3, 40)
    assert ax.child_axes[0].get_ylabel() == "procrustes (debiased)"
    ax = heatmap(result(values=distances), new_axes(), vmin=0, vmax=50)
    assert ax.images[0].get_clim() == (0, 50)


@pytest.mark.parametrize(
    ("low", "high", "extend"),
    [(0.0, 1.0, "neither"), (-1e-12, 1 + 1e-12, "neither"), (-0.05, 1.0, "min")],
)
def test_values_beyond_the_scale_show_an_arrow_and_are_not_clamped(low, high, extend):
    values = np.linspace(low, high, 100).reshape(10, 10)
    ax = heatmap(result(values=values), new_axes())
    assert ax.images[0].get_clim() == (0, 1)
    assert ax.images[0].get_array().min() == pytest.approx(low, abs=1e-6)
    assert ax.images[0].colorbar is None
    bar = ax.child_axes[0]
    assert _extend(bar) == extend
    cmap = ax.images[0].cmap
    assert to_hex(cmap(-0.01)) not in {to_hex(color) for color in cmap(np.linspace(0, 1, 256))}


def test_arrows_at_both_ends_when_the_caller_narrows_the_scale():
    ax = heatmap(result(), new_axes(), vmin=0.3, vmax=0.6)
    assert _extend(ax.child_axes[0]) == "both"
    cmap = ax.images[0].cmap
    inside = {to_hex(color) for color in cmap(np.linspace(0, 1, 256))}
    assert to_hex(cmap(-0.1)) not in inside
    assert to_hex(cmap(1.1)) not in inside


def _extend(bar: Axes) -> str:
    return bar._colorbar.extend


def test_nan_is_see_through_to_a_hatched_ground_and_has_a_key():
    values = np.full((10, 10), 0.5)
    values[2] = np.nan
    ax = heatmap(result(values=values), new_axes())
    image = ax.images[0]
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), np.isnan(values))
    assert image.cmap(np.ma.masked)[3] == 0
    assert ax.patch.get_hatch()
    assert ax.patch.get_facecolor() == to_rgba("0.92")
    keys = [child for child in ax.child_axes if child.get_ylabel() == "NaN"]
    assert len(keys) == 1
    assert keys[0].patch.get_hatch()
    assert_readable(ax.figure)


def test_without_nan_there_is_no_key_and_all_nan_is_still_drawn():
    ax = heatmap(result(), new_axes())
    assert len(ax.child_axes) == 1
    assert not ax.patch.get_hatch()
    ax = heatmap(result(values=np.full((10, 10), np.nan)), new_axes())
    assert ax.images[0].get_clim() == (0, 1)
    ax.figure.draw_without_rendering()


def test_options_of_heatmap():
    ax = heatmap(result(), new_axes(), title="standard", colorbar=False, block_boundaries=False)
    assert ax.get_title() == "standard"
    assert ax.child_axes == []
    assert len(ax.lines) == 0
    ax = heatmap(result(), new_axes(), cmap=mpl.colormaps["cividis"])
    assert ax.images[0].cmap.name == "cividis"
    ax = heatmap(result(), new_axes(), label_layers="none")
    assert tick_texts(ax.get_yticklabels()) == []
    ax = heatmap(result(), new_axes(), label_layers="stages")
    assert tick_texts(ax.get_yticklabels()) == ["stem", "layer1", "layer2", "avgpool"]
    ax = heatmap(result(resnet50_layers()), new_axes(), label_layers="all")
    assert tick_texts(ax.get_yticklabels()) == list(resnet50_layers())


def test_boundaries_lie_between_the_stages_of_each_side():
    ax = heatmap(result(TEN, ["a.0", "a.1", "b.0", "b.1"]), new_axes())
    horizontal = sorted({line.get_ydata()[0] for line in ax.lines if line.get_xdata()[1] == 1})
    vertical = [line.get_xdata()[0] for line in ax.lines if line.get_ydata()[1] == 1]
    assert horizontal == [0.5, 4.5, 8.5]
    assert [place for place in vertical if place == 1.5] == [1.5]


def test_without_axes_pyplots_current_ones_are_used():
    from matplotlib import pyplot

    figure = pyplot.figure()
    try:
        ax = pyplot.gca()
        assert heatmap(result()) is ax
        assert diagonal(result(), ax=None) is ax
    finally:
        pyplot.close(figure)


def test_conditions_and_models_that_differ_are_all_named():
    mixed = result()
    mixed["y_condition"] = ("y", ["adv"] * 5 + ["noise"] * 5)
    ax = heatmap(mixed, new_axes())
    assert ax.get_xlabel() == "adv, noise · ckpt-st"


# labels


def test_at_147_layers_the_stages_are_named_with_ticks_between_them():
    names = resnet50_layers()
    assert len(names) == 147
    ax = heatmap(result(names), new_axes())
    ax.figure.draw_without_rendering()
    wanted = ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert tick_texts(ax.get_yticklabels())[:5] == wanted
    stage = [name.split(".")[0] for name in names]
    starts = [i for i in range(2, 147) if stage[i] != stage[i - 1]]  # conv1, relu: the stem
    boundaries = ax.yaxis.get_minorticklocs() + 0.5
    np.testing.assert_array_equal(boundaries, starts)


def test_labels_follow_the_size_at_which_the_axes_are_drawn():
    names = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(10)]
    ax = heatmap(result(names), new_axes((2, 2)))
    ax.figure.draw_without_rendering()
    assert tick_texts(ax.get_yticklabels()) == ["layer1", "layer2", "layer3"]
    ax.figure.set_size_inches(8, 8)
    ax.figure.draw_without_rendering()
    assert tick_texts(ax.get_yticklabels()) == names


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (TEN, [("stem", 0, 1), ("layer1", 1, 5), ("layer2", 5, 9), ("avgpool", 9, 10)]),
        (
            ["conv1", "bn1", "relu", "layer1.0.conv1", "layer1.0.relu@2", "layer1", "avgpool"],
            [("stem", 0, 3), ("layer1", 3, 6), ("avgpool", 6, 7)],
        ),
        # A prefix that all but the ends share is split by what follows it.
        (
            [
                "stem",
                *(f"stages.{i}.blocks.{j}" for i in range(3) for j in range(3)),
                "norm",
                "head",
            ],
            [
                ("stem", 0, 1),
                ("stages.0", 1, 4),
                ("stages.1", 4, 7),
                ("stages.2", 7, 10),
                ("head", 10, 12),
            ],
        ),
        # ... but not into single layers.
        (
            ["patch_embed", *(f"blocks.{i}" for i in range(12)), "norm"],
            [("stem", 0, 1), ("blocks", 1, 13), ("norm", 13, 14)],
        ),
        (
            ["conv", *(f"encoder.layers.layer_{i}.{m}" for i in range(2) for m in ("ln", "mlp"))],
            [("stem", 0, 1), ("layer_0", 1, 3), ("layer_1", 3, 5)],
        ),
        (["conv1", "relu1", "conv2", "relu2"], []),
        (["features.0", "features.1"], []),
        (["only"], []),
    ],
)
def test_stages(names, wanted):
    assert [(stage.label, stage.start, stage.stop) for stage in stages(names)] == wanted


def test_stages_cover_all_layers_of_a_real_network_in_order():
    names = [name for name, _ in torchvision.models.convnext_tiny().named_modules() if name]
    found = stages(names)
    assert [stage.start for stage in found] == [0, *(stage.stop for stage in found[:-1])]
    assert found[-1].stop == len(names)


def test_many_layers_without_stages_are_named_at_even_steps():
    names = [f"conv{i}" for i in range(100)]
    ax = heatmap(result(names), new_axes())
    assert_readable(ax.figure)
    shown = [names.index(name) for name in tick_texts(ax.get_yticklabels())]
    assert len(shown) > 10
    assert len(set(np.diff(shown))) == 1


def test_elide_keeps_both_ends():
    assert elide("short", 5) == "short"
    assert elide("resnet50-cifar100-seed0", 11) == "resne…seed0"
    assert len(elide("x" * 50, 10)) == 10


# readable


@pytest.mark.parametrize("names", [TEN, resnet50_layers()], ids=["10", "147"])
@pytest.mark.parametrize("long", [False, True], ids=["short names", "long names"])
def test_nothing_overlaps_or_leaves_the_figure(names, long):
    ends = ("resnet50-cifar100-standard-seed0-epoch200", "resnet50-cifar100-at-eps8-full-seed0")
    models = ends if long else ("ckpt-st", "ckpt-at")
    networks = {
        title: {
            key: ds.assign_coords(
                x_model=("x", [model] * len(names)), y_model=("y", [model] * len(names))
            )
            for key, ds in results.items()
        }
        for (title, results), model in zip(study(names).items(), models, strict=True)
    }
    assert_readable(clean_vs_attacked(networks))
    if not long:
        return
    crossed = result(names, models=models)
    assert_readable(panels([crossed]))
    ax = heatmap(crossed, new_axes((3.4, 3.4)))
    assert_readable(ax.figure)
    ax = difference(crossed, result(names), new_axes((3.4, 3.4)))
    assert_readable(ax.figure)
    ax = diagonal([r for results in networks.values() for r in results.values()], new_axes((4, 3)))
    assert_readable(ax.figure)


@pytest.mark.parametrize(("rows", "columns"), [(10, 147), (147, 10), (10, 18)])
def test_rectangular_matrices_are_readable(rows, columns):
    names = {10: TEN, 147: resnet50_layers(), 18: resnet50_layers()[:18]}
    assert_readable(panels([result(names[rows], names[columns])]))


# panels


def test_panels_share_one_scale_and_one_colour_bar():
    deep, shallow = np.full((10, 10), 0.2), np.full((10, 10), 0.9)
    shallow[0, 0] = -0.3
    fig = panels([result(values=deep), result(values=shallow)], ["standard", "trained"])
    assert len(fig.axes) == 2
    left, right = fig.axes
    assert left.images[0].norm is right.images[0].norm
    assert left.images[0].cmap == right.images[0].cmap
    assert [ax.get_title() for ax in fig.axes] == ["standard", "trained"]
    assert (len(left.child_axes), len(right.child_axes)) == (0, 1)
    # Values of any panel decide the arrows.
    assert _extend(right.child_axes[0]) == "min"
    assert fig.get_size_inches()[0] == pytest.approx(7)
    # The same names are written once.
    assert tick_texts(left.get_yticklabels()) == TEN
    assert not any(tick.label1.get_visible() for tick in right.yaxis.get_major_ticks())


def test_panels_of_other_layers_keep_their_names():
    fig = panels([result(), result([f"block{i}" for i in range(10)])])
    assert tick_texts(fig.axes[1].get_yticklabels()) == [f"block{i}" for i in range(10)]


def test_panels_in_a_grid_and_in_a_figure_of_the_callers():
    fig = Figure(figsize=(6, 5))
    assert panels([result()] * 3, list("abc"), fig=fig, columns=2) is fig
    assert tuple(fig.get_size_inches()) == (6, 5)
    assert len(fig.axes) == 3
    assert_readable(fig)
    fig = panels([result()] * 4)
    rows = {round(ax.get_position().y0, 3) for ax in fig.axes}
    assert len(rows) == 2
    assert_readable(fig)


# difference


def test_difference_is_centred_at_0_with_symmetric_limits():
    a, b = np.full((10, 10), 0.5), np.full((10, 10), 0.4)
    b[3, 7] = 0.9
    ax = new_axes()
    other = result(values=b, models=("ckpt-at", "ckpt-at"))
    assert difference(result(values=a), other, ax, title="change") is ax
    image = ax.images[0]
    np.testing.assert_allclose(image.get_array(), a - b)
    assert image.get_clim() == (pytest.approx(-0.4), pytest.approx(0.4))
    middle = np.array(image.cmap(0.5)[:3])
    assert (middle > 0.95).all()  # 0 is white
    assert ax.get_ylabel() == "clean · ckpt-st − ckpt-at"
    assert ax.get_title() == "change"
    assert ax.child_axes[0].get_ylabel() == "difference in linear CKA (debiased)"


def test_difference_of_a_result_with_itself_is_0_on_a_scale_that_exists():
    ax = difference(result(), result(), new_axes())
    assert not ax.images[0].get_array().any()
    assert ax.images[0].get_clim() == (-1, 1)


# diagonal


def subtracted(**options) -> xr.Dataset:
    values = np.linspace(-0.1, 0.3, 100).reshape(10, 10)
    return result(TEN, values=values, difference="at minus st", **options)


def test_a_difference_is_drawn_as_one_everywhere():
    ax = heatmap(subtracted(), Figure().add_subplot())
    assert ax.images[0].get_clim() == (-0.3, 0.3)
    assert ax.images[0].cmap.name == "vlag"
    bar = ax.child_axes[0]
    assert bar.get_ylabel().replace("\n", " ").startswith("difference in linear CKA")
    figure = panels([subtracted(), subtracted()])
    assert figure.axes[1].images[0].get_clim() == (-0.3, 0.3)
    curves = diagonal(subtracted(interval=0.01), Figure().add_subplot())
    assert curves.get_ylim()[1] < 0.5
    assert curves.get_ylabel().replace("\n", " ").startswith("difference in")
    assert heatmap(subtracted(), Figure().add_subplot(), vmin=-1, vmax=1, cmap="viridis")
    flat = subtracted().assign(similarity=(("x", "y"), np.zeros((10, 10))))
    assert heatmap(flat, Figure().add_subplot()).images[0].get_clim() == (-1, 1)
    with pytest.raises(UserError, match="differences and similarities"):
        panels([subtracted(), result(TEN)])


def covered(ax: Axes) -> set[tuple[int, int]]:
    """(row, column) of the cells that a mask covers."""
    if not ax.patches:
        return set()
    (patch,) = ax.patches
    corners = patch.get_path().vertices.reshape(-1, 5, 2)
    return {(round(y), round(x)) for x, y in (corners.min(1) + 0.5)}


def test_masks_cover_what_is_not_above_them():
    values = np.array([[0.1, 0.5], [0.3, np.nan]])
    tested = result(["a", "b"], values=values, interval=0.2).assign(
        null_95=(("x", "y"), np.array([[0.2, 0.2], [0.3, np.nan]])), null_95_max=((), 0.4)
    )
    cells = {
        mask: covered(heatmap(tested, Figure().add_subplot(), mask=mask))
        for mask in ("null", "max", "zero")
    }
    assert cells == {
        "null": {(0, 0), (1, 0)}, "max": {(0, 0), (1, 0)}, "zero": {(0, 0)}
    }  # fmt: skip
    ax = panels([tested], mask="max").axes[0]
    assert covered(ax) == {(0, 0), (1, 0)}
    keys = [key.get_ylabel() for key in ax.child_axes[1:]]
    assert keys == ["NaN", "within\nchance"]
    decided = tested.assign(excludes_0=(("x", "y"), np.array([[True, False], [True, False]])))
    assert covered(heatmap(decided, Figure().add_subplot(), mask="zero")) == {(0, 1)}
    none = tested.assign(null_95_max=((), -1.0))
    assert covered(heatmap(none, Figure().add_subplot(), mask="max")) == set()
    assert covered(heatmap(tested, Figure().add_subplot())) == set()
    with pytest.raises(UserError, match=r"expects a result with null_95;.*--permutations"):
        heatmap(result(TEN), Figure().add_subplot(), mask="null")
    with pytest.raises(UserError, match="mask expects one of null, max, zero; got 'p'"):
        heatmap(tested, Figure().add_subplot(), mask="p")


def test_diagonal_draws_the_diagonal_with_its_interval():
    data = result(interval=0.05)
    ax = new_axes()
    assert diagonal(data, ax) is ax
    curves = [line for line in ax.lines if len(line.get_xdata()) == 10]
    values = np.diagonal(data["similarity"].values)
    np.testing.assert_array_equal(curves[0].get_ydata(), values)
    (band,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx((values - 0.05).min())
    assert corners[:, 1].max() == pytest.approx((values + 0.05).max())
    assert tick_texts(ax.get_xticklabels()) == TEN
    low, high = ax.get_ylim()
    assert low < 0
    assert high >= values.max() + 0.05


def test_controls_are_dashed_grey_and_last_and_keep_their_networks_marker():
    results = [r for results in study(TEN).values() for r in results.values()]
    ax = diagonal([results[1], *results[:1], *results[2:]], new_axes())
    curves = [line for line in ax.lines if len(line.get_xdata()) == 10]
    assert [line.get_linestyle() for line in curves] == ["-", "-", "--", "--"]
    assert {to_hex(line.get_color()) for line in curves[2:]} == {to_hex("0.5")}
    assert len({line.get_color() for line in curves}) == 3
    assert [line.get_marker() for line in curves] == ["o", "s", "o", "s"]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["ckpt-st", "ckpt-at", "noise"]


def test_default_labels_say_what_tells_the_results_apart():
    attacks = [result(conditions=("clean", name)) for name in ("pgd", "fgsm")]
    ax = diagonal(attacks, new_axes())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pgd", "fgsm"]
    both = [attacks[0], result(conditions=("clean", "fgsm"), models=("b", "b"))]
    ax = diagonal(both, new_axes())
    wanted = ["pgd · ckpt-st", "fgsm · b"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == wanted
    ax = diagonal(both, new_axes(), labels=["one", "two"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]


def test_a_negative_diagonal_is_inside_the_axes():
    values = np.full((10, 10), -0.3)
    ax = diagonal(result(values=values), new_axes())
    assert ax.get_ylim()[0] < -0.3


# the paper's figure


def test_clean_vs_attacked_has_a_heatmap_for_each_network_and_all_curves():
    fig = clean_vs_attacked(study(TEN))
    standard, trained, curves = fig.axes
    assert standard.images[0].norm is trained.images[0].norm
    assert [ax.get_title() for ax in fig.axes[:2]] == ["standard", "adversarially trained"]
    assert [ax.get_xlabel() for ax in fig.axes] == ["adv · ckpt-st", "adv · ckpt-at", "layer"]
    texts = [text.get_text() for text in curves.get_legend().get_texts()]
    assert texts == ["standard", "adversarially trained", "noise control"]
    assert len([c for c in curves.collections if isinstance(c, PolyCollection)]) == 2
    assert fig.get_size_inches()[0] == pytest.approx(7)
    sizes = {text.get_fontsize() for text in visible_texts(fig)}
    assert min(sizes) >= 7
    assert max(sizes) <= 9
    fig.draw_without_rendering()
    sides = [ax.bbox.height for ax in fig.axes] + [ax.bbox.width for ax in fig.axes]
    assert max(sides) - min(sides) < 0.02 * max(sides)
    # No more than a tenth of an inch of white at any edge.
    box = fig.get_tightbbox()
    width, height = fig.get_size_inches()
    assert max(box.x0, box.y0, width - box.x1, height - box.y1) < 0.1


# files


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_save_figure_writes_each_format_whole_and_the_same_each_time(tmp_path: Path, suffix):
    path = tmp_path / f"figure{suffix}"
    fig = small_figure()
    path.write_bytes(b"old")
    assert save_figure(fig, path) == path
    first = path.read_bytes()
    magic = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix.lower()]
    assert first.startswith(magic)
    if suffix == ".pdf":
        assert b"/Type3" not in first
        assert b"/FontFile2" in first
    if suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            assert image.size == (600, 600)
    save_figure(small_figure(), str(path))
    assert path.read_bytes() == first
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["figure.bmp", "figure", "missing/figure.png", "file/figure.png"])
def test_save_figure_refuses_and_leaves_nothing_behind(tmp_path: Path, name):
    (tmp_path / "file").write_text("not a folder")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        save_figure(Figure(), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert Path(name).name in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_figure_that_fails_while_it_is_written_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    fig = Figure()

    def fail(target, **_):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fig, "savefig", fail)
    with pytest.raises(UserError, match="No space left on device"):
        save_figure(fig, path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["figure.png"]


# mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heatmap(xr.Dataset(), new_axes()), "comparison result"),
        (lambda: heatmap(result(values=np.zeros((0, 0)), rows=[]), new_axes()), "at least one"),
        (lambda: heatmap(result(), new_axes(), cmap="rocketic"), "rocketic"),
        (lambda: heatmap(result(), new_axes(), label_layers="some"), "some"),
        (lambda: heatmap(result(), new_axes(), vmin=2), "vmin < vmax"),
        (lambda: difference(result(), result(TEN[1:]), new_axes()), "same layers"),
        (lambda: difference(result(), result(measure="rsa"), new_axes()), "one measure"),
        (lambda: diagonal([], new_axes()), "at least one"),
        (lambda: diagonal(result(TEN, TEN[1:]), new_axes()), "same layers"),
        (lambda: diagonal([result()], new_axes(), labels=["a", "b"]), "got 2"),
        (lambda: panels([]), "at least one"),
        (lambda: panels([result()], ["a", "b"]), "got 2"),
        (lambda: panels([result()], columns=0), "columns"),
        (lambda: panels([result(), result(measure="rsa")]), "one measure"),
        (lambda: clean_vs_attacked({}), "at least one network"),
        (lambda: clean_vs_attacked({"a": {}}), "got 0 for a"),
        (lambda: clean_vs_attacked({"a": {"pgd": result(), "fgsm": result()}}), "pgd, fgsm"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_library_does_not_load_pyplot_or_need_a_display():
    code = (
        "import sys, json, repsim, repsim.plot; from matplotlib.figure import Figure;"
        "print(json.dumps([name for name in ('matplotlib.pyplot', 'seaborn')"
        " if name in sys.modules]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out) == []


def test_one_and_a_rounding_is_drawn_as_one() -> None:
    values = np.array([[1 + 2e-16, 1 + 1e-3], [-2e-16, 0.5]])
    ax = heatmap(result(["a", "b"], values=values), new_axes(), colorbar=False, vmin=0, vmax=1)
    shown = np.asarray(ax.images[0].get_array())
    assert shown[0, 0] == 1
    assert shown[1, 0] == 0
    assert shown[0, 1] == values[0, 1]  # beyond the scale, and seen to be


def test_several_sides_are_named_and_parted() -> None:
    values = np.random.default_rng(0).random((6, 6))
    drawn = result(["a", "b", "c"] * 2, values=values)
    for side in "xy":
        drawn[f"{side}_condition"] = (side, ["clean"] * 3 + ["pgd"] * 3)
    ax = sides_map(drawn, new_axes())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["clean", "pgd"]
    assert ax.get_yticks().tolist() == [1.0, 4.0]
    assert len(ax.lines) == 2
    for side in "xy":
        drawn[f"{side}_model"] = (side, ["st"] * 3 + ["at"] * 3)
    ax = sides_map(drawn, new_axes())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["clean\nst", "pgd\nat"]
    one = sides_map(result(["a", "b"]), new_axes())
    assert one.get_yticklabels()[0].get_text() == "a"
    assert sides_figure(drawn).get_size_inches()[0] == pytest.approx(7)
