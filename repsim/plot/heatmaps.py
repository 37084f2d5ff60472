"""Layer-by-layer similarity as a heatmap: one comparison, or the difference of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from repsim.plot.labels import (
    LABEL_SIZE,
    LAYER_LABELS,
    TICK_SIZE,
    fit,
    label_axis,
    side_points,
    stages,
    wordings,
)
from repsim.plot.result import (
    MASKS,
    Matrix,
    is_difference,
    layers,
    masked,
    matrix,
    measure_label,
    require,
    words,
)

# seaborn's: perceptually uniform, ordered by lightness for every kind of colour vision.
SEQUENTIAL = "rocket"
DIVERGING = "vlag"
# Neither colour is in the map: a value beyond the scale is not mistaken for its end.
UNDER, OVER = "#2a7f8e", "#a9e5d6"
TOLERANCE = 1e-6  # a CKA of 1 + 1e-12 is 1
MAX_ASPECT = 2.0  # beyond it, square cells would leave a strip too thin to read
NAN_FACE, NAN_HATCH = "0.92", "0.6"
MASK_FACE, MASK_HATCH = (0.8, 0.8, 0.8, 0.55), "0.35"


def heatmap(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    mask: str | None = None,
    title: str | None = None,
    colorbar: bool = True,
    block_boundaries: bool = True,
    label_layers: str = "auto",
) -> Axes:
    """Similarity of every layer of one side with every layer of the other.

    Rows are the layers of x, columns those of y, the first layer at the lower left as in
    Raghu et al. 2021 and Nguyen et al. 2021. Cells are square unless one side has more than
    twice the layers of the other. Undefined values (NaN) are hatched grey, and
    values beyond the scale have a colour of their own, shown by an arrow on the colour bar.
    The difference of two results (see `repsim.result.difference`) has a diverging map that is
    symmetric about 0.

    Args:
        result: comparison with `similarity` (x, y), see `repsim.compare`.
        ax: axes to draw into; pyplot's current axes if None.
        vmin: lower end of the colour scale. If neither end is given the scale is 0 to 1 for
            measures bounded by 1, otherwise the data's range.
        vmax: upper end of the colour scale.
        cmap: colour map; its name or the map itself, whose own colours for values beyond the
            scale are kept. By default rocket, of a difference vlag.
        mask: cells to grey out and hatch: `null` and `max`, those not above the permutation null;
            `zero`, those whose interval holds 0.
        title: text above the axes.
        colorbar: whether to draw the colour bar, in an inset to the right of the axes.
        block_boundaries: whether to draw thin lines between the network's stages.
        label_layers: "all" names, "stages" (stem, layer1, ...), "none", or "auto": all names
            where they fit at the size at which the axes are drawn, stages elsewhere.

    Returns:
        The axes.

    Raises:
        UserError: not a comparison result, or an option that does not exist.
    """
    values = matrix(result)
    differs = is_difference([result])
    norm = scale([values], vmin, vmax, about_0=differs)
    cmap = cmap or (DIVERGING if differs else SEQUENTIAL)
    ax = current(ax)
    draw(ax, result, values, norm, colormap(cmap), block_boundaries, label_layers, title, mask=mask)
    if colorbar:
        add_colorbar(ax, [values], measure_label([result]), mask=mask)
    return ax


def difference(
    a: xr.Dataset, b: xr.Dataset, ax: Axes | None = None, *, title: str | None = None
) -> Axes:
    """Similarity in `a` minus similarity in `b`, on a diverging scale that is symmetric about 0.

    Args:
        a: comparison with `similarity` (x, y).
        b: comparison of the same measure and the same layers.
        ax: axes to draw into; pyplot's current axes if None.
        title: text above the axes.

    Returns:
        The axes.

    Raises:
        UserError: the two compare other layers or use other measures.
    """
    label = measure_label([a, b])
    values, other = matrix(a), matrix(b)
    for side, name in (("x", "rows"), ("y", "columns")):
        require(
            layers(a, side) == layers(b, side),
            f"difference expects the same layers in the {name} of both results; got "
            f"{len(layers(a, side))} and {len(layers(b, side))} layers that do not agree; "
            "choose the same --layers for both",
        )
    values = values - other
    norm = scale([values], None, None, about_0=True)
    ax = current(ax)
    draw(ax, a, values, norm, colormap(DIVERGING), True, "auto", title, b)
    add_colorbar(ax, [values], f"difference in {label}")
    return ax


def scale(
    matrices: Sequence[Matrix], vmin: float | None, vmax: float | None, *, about_0: bool = False
) -> Normalize:
    """One colour scale for all matrices; see `heatmap`."""
    finite = np.concatenate([values[np.isfinite(values)] for values in matrices])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if about_0:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    elif high <= 1 + TOLERANCE and low >= -1 - TOLERANCE:
        low, high = 0.0, 1.0
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    if vmin is None and vmax is None and low == high:
        high = low + 1  # a constant measure still has a scale
    require(
        low < high,
        f"the colour scale expects vmin < vmax; got {low:g} and {high:g}; give both",
    )
    return Normalize(low, high)


def draw(
    ax: Axes,
    result: xr.Dataset,
    values: Matrix,
    norm: Normalize,
    cmap: Colormap,
    block_boundaries: bool,
    label_layers: str,
    title: str | None,
    minus: xr.Dataset | None = None,
    mask: str | None = None,
) -> None:
    """The image, its layer names and its words, without a colour bar."""
    require(
        label_layers in LAYER_LABELS,
        f"label_layers expects one of {', '.join(LAYER_LABELS)}; got {label_layers!r}",
    )
    rows, columns = values.shape
    ax.imshow(
        np.ma.masked_where(np.isnan(values), _inside(values, norm)),
        origin="lower",
        interpolation="nearest",
        norm=norm,
        cmap=cmap,
    )
    if max(rows, columns) > MAX_ASPECT * min(rows, columns):
        ax.set_aspect("auto")
        ax.set_box_aspect(1 / MAX_ASPECT if columns > rows else MAX_ASPECT)
    if np.isnan(values).any():
        _hatch(ax)
    if mask is not None:
        _cover(ax, masked(result, mask))
    for spine in ax.spines.values():
        spine.set_linewidth(0.6)
    for axis, side in ((ax.yaxis, "x"), (ax.xaxis, "y")):
        label_axis(axis, layers(result, side), label_layers)
    if block_boundaries:
        _boundaries(ax, layers(result, "x"), layers(result, "y"))
    name_sides(ax, result, title, minus)


def name_sides(
    ax: Axes, result: xr.Dataset, title: str | None, minus: xr.Dataset | None = None
) -> None:
    """Title and axis labels ("clean · ckpt-st"), worded to fit the axes' present size."""
    for axis, side in ((ax.yaxis, "x"), (ax.xaxis, "y")):
        texts = [words(result, side, word) for word in ("condition", "model")]
        if minus is not None:
            others = [words(minus, side, word) for word in ("condition", "model")]
            texts = [a if a == b else f"{a} − {b}" for a, b in zip(texts, others, strict=True)]
        axis.label.set_fontsize(LABEL_SIZE)
        fit(axis.label, wordings(*texts), side_points(ax, axis.axis_name))
    if title:
        ax.set_title(title, fontsize=LABEL_SIZE, pad=4)
        fit(ax.title, wordings(title), side_points(ax, "x"))


def add_colorbar(
    ax: Axes, matrices: Sequence[Matrix], label: str, *, mask: str | None = None
) -> Colorbar:
    """A colour bar at the right of the axes, as high as they are, for all of `matrices`.

    Below it stand the keys of what has no colour: undefined values, cells that a mask covers.
    """
    image = ax.images[-1]
    low, high = map(float, image.get_clim())
    values = np.concatenate([values[~np.isnan(values)] for values in matrices])
    tolerance = TOLERANCE * (high - low)
    below = bool((values < low - tolerance).any())
    above = bool((values > high + tolerance).any())
    undefined = any(np.isnan(values).any() for values in matrices)
    keys: list[tuple[str, Callable[[Axes], None]]] = [("NaN", _hatch)] if undefined else []
    if mask is not None:
        keys.append((MASKS[mask][1], lambda key: _cover(key, np.ones((1, 1), dtype=np.bool_))))
    bottom = 0.12 * len(keys)
    inset = ax.inset_axes((1.04, bottom, 0.05, 1 - bottom))
    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(
        ScalarMappable(image.norm, image.cmap),
        cax=inset,
        extend={(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above],
    )
    bar.ax.yaxis.label.set_fontsize(LABEL_SIZE)
    bar.ax.yaxis.set_label_position("right")
    fit(bar.ax.yaxis.label, wordings(label), side_points(ax, "y"))
    bar.ax.tick_params(labelsize=TICK_SIZE, width=0.6, length=2, pad=2)
    bar.outline.set_linewidth(0.6)
    for place, (text, fill) in enumerate(keys):
        key = ax.inset_axes((1.04, 0.12 * place, 0.05, 0.05))
        key.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5))
        fill(key)
        key.set(xticks=[], yticks=[])
        key.yaxis.set_label_position("right")
        key.set_ylabel(text, rotation=0, ha="left", va="center", fontsize=TICK_SIZE, labelpad=4)
        for spine in key.spines.values():
            spine.set_linewidth(0.6)
    return bar


def current(ax: Axes | None) -> Axes:
    """The axes given, or pyplot's current ones."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.gca()


def colormap(cmap: str | Colormap) -> Colormap:
    """The map with its own colours beyond the scale, and NaN see-through to the hatched ground."""
    clear = (0.0, 0.0, 0.0, 0.0)
    if isinstance(cmap, Colormap):
        return cmap.with_extremes(bad=clear)
    if cmap not in mpl.colormaps:
        import seaborn  # noqa: F401  it registers its maps with matplotlib; a second to import
    require(
        cmap in mpl.colormaps, f"cmap expects the name of a matplotlib colour map; got {cmap!r}"
    )
    return mpl.colormaps[cmap].with_extremes(bad=clear, under=UNDER, over=OVER)


def _inside(values: Matrix, norm: Normalize) -> Matrix:
    """The values, those within rounding of an end of the scale at that end."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    slack = TOLERANCE * (norm.vmax - norm.vmin)
    values = np.where((values > norm.vmax) & (values <= norm.vmax + slack), norm.vmax, values)
    return np.where((values < norm.vmin) & (values >= norm.vmin - slack), norm.vmin, values)


def _hatch(ax: Axes) -> None:
    ax.patch.set(facecolor=NAN_FACE, edgecolor=NAN_HATCH, linewidth=0, hatch="//////")
    ax.patch.set_hatch_linewidth(0.5)


def _cover(ax: Axes, cells: NDArray[np.bool_]) -> None:
    """Grey and hatched the other way than NaN, the colour below still seen: one path for all."""
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
    places = np.argwhere(cells)[:, ::-1]  # (column, row)
    if not len(places):
        return
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    path = Path(
        (places[:, None] + corners).reshape(-1, 2), np.tile(codes, len(places)).astype(np.uint8)
    )
    patch = PathPatch(
        path, facecolor=MASK_FACE, edgecolor=MASK_HATCH, linewidth=0, hatch="\\\\\\\\\\\\"
    )
    patch.set_hatch_linewidth(0.4)
    ax.add_patch(patch)


def _boundaries(ax: Axes, rows: list[str], columns: list[str]) -> None:
    line: dict[str, Any] = {"color": "white", "linewidth": 0.5, "alpha": 0.8}
    # White is seen on the dark end of the map, its dark edge on the bright end.
    line["path_effects"] = [withStroke(linewidth=0.9, foreground="0.35", alpha=0.5)]
    for stage in stages(rows)[:-1]:
        ax.axhline(stage.stop - 0.5, **line)
    for stage in stages(columns)[:-1]:
        ax.axvline(stage.stop - 0.5, **line)
