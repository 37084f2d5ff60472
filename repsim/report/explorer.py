"""The interactive heatmaps: bokeh's figures, empty, and the packed matrices that fill them."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from repsim.plot.heatmaps import OVER, SEQUENTIAL, UNDER, colormap
from repsim.plot.labels import stages
from repsim.report.pack import LIMIT, pack
from repsim.report.read import CLEAN, NOISE, Study
from repsim.report.words import full_name

PANELS = 6
NOT_DEFINED = "#cfcfcf"
_FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass
class Explorer:
    """What the page needs for its heatmaps.

    Attributes:
        script: bokeh's script that draws the figures into `divs`.
        divs: by panel's name, the element.
        library: bokeh's own JavaScript, to stand in the page.
        data: plain values for explorer.js: sides, layers, blocks, the packed numbers.
        grid: (panel, network shown first) of the panels with one network each.
        pairs: (panel, network of the rows, of the columns) of those with two.
        compare: groups of (value, words) of the choice of two conditions of one network.
        readings: (value, words) of the choice of the condition of two networks.
        bar: a CSS gradient of the colour map.
        notes: sentences for the reader.
    """

    script: str
    divs: dict[str, str]
    library: str
    data: dict[str, Any]
    grid: list[tuple[str, str]]
    pairs: list[tuple[str, str, str]]
    compare: list[tuple[str, list[tuple[str, str]]]]
    readings: list[tuple[str, str]]
    bar: str
    notes: list[str] = field(default_factory=list)


def condition_words(study: Study, condition: str) -> str:
    """A condition as readers know it."""
    if condition == study.own:
        return f"attacked ({condition} on the network itself)"
    if condition == study.shared:
        return "attacked, one set for all networks"
    return {CLEAN: "clean", NOISE: "noise of the same size (control)"}.get(condition, condition)


def explorer(study: Study, limit: int = LIMIT) -> Explorer | None:
    """The heatmaps of a study; None where nothing was compared.

    Args:
        study: what was read.
        limit: cells that the page may hold; pairs of networks beyond it are left out.
    """
    if study.similarity is None or not study.networks:
        return None
    names = [one.name for one in study.networks]
    sides = [(name, condition) for name in names for condition in study.conditions(name)]
    number = {side: i for i, side in enumerate(sides)}
    same = [
        (number[name, a], number[name, b])
        for name in names
        for a, b in itertools.combinations_with_replacement(study.conditions(name), 2)
    ]
    conditions = _ordered(study)
    across = [
        (number[a, condition], number[b, condition])
        for condition in conditions
        for a, b in itertools.combinations(names, 2)
        if (a, condition) in number and (b, condition) in number
    ]
    packed = pack(study.similarity, sides, [*same, *across], limit=limit)
    lists = list(dict.fromkeys(tuple(study.layers(name)) for name in names))
    grid = [(f"grid-{i}", name) for i, name in enumerate(_shown_first(study))]
    pairs = [(f"pair-{i}", a, b) for i, (a, b) in enumerate(_pairs_first(study))]
    panels = [panel for panel, *_ in (*grid, *pairs)]
    script, divs = _figures(panels)
    palette = _palette()
    data = {
        "sides": sides,
        "networks": {
            one.name: {
                "words": full_name(one), "layers": lists.index(tuple(study.layers(one.name))),
            }
            for one in study.networks
        },
        "layers": [_axis(names) for names in lists],
        "blocks": packed.blocks,
        "cells": packed.cells,
        "step": packed.step,
        "panels": panels,
        "packed": packed.text,
    }  # fmt: skip
    notes = []
    if packed.left_out:
        notes.append(
            f"{len(packed.left_out)} of {len(packed.left_out) + len(packed.blocks)} pairs are left "
            "out here for the size of the page; similarity.h5 has all."
        )
    words = {one: condition_words(study, one) for one in conditions}
    between = [
        (f"{a}|{b}", f"{words[a]} × {words[b]}")
        for a, b in itertools.combinations(conditions, 2)
    ]  # fmt: skip
    within = [(f"{one}|{one}", f"{words[one]} × the same") for one in conditions]
    return Explorer(
        script=script,
        divs=divs,
        library=_library(),
        data=data,
        grid=grid,
        pairs=pairs,
        compare=[("between two conditions", between), ("within one condition", within)],
        readings=[(one, f"both {words[one]}") for one in conditions],
        bar=f"linear-gradient(to right, {', '.join(palette[::15])})",
        notes=notes,
    )


def _ordered(study: Study) -> list[str]:
    """Conditions, those first that readers ask for first: clean, own, shared, noise, others."""
    known = list(dict.fromkeys(c for one in study.networks for c in study.conditions(one.name)))
    first = [CLEAN, study.own, study.shared, NOISE]
    return sorted(known, key=lambda c: first.index(c) if c in first else len(first))


def _shown_first(study: Study) -> list[str]:
    """Of every scheme a standard and an adversarially trained network; as many as fit."""
    found: list[str] = []
    for scheme in dict.fromkeys(one.scheme for one in study.networks):
        for scenario in ("st", "at"):
            names = _recipe(study, scheme, scenario)
            found += names[:1]
    rest = [one.name for one in study.networks if one.name not in found]
    return (found + rest)[: min(PANELS, max(len(found), 2))]


def _recipe(study: Study, scheme: str, scenario: str) -> list[str]:
    from repsim.report.groups import usual

    return [one.name for one in usual(study, scenario) if one.scheme == scheme]


def _pairs_first(study: Study) -> list[tuple[str, str]]:
    """Two standard networks of different schemes, two adversarially trained ones."""
    found = []
    for scenario in ("st", "at"):
        schemes: dict[str, str] = {}
        for one in study.networks:
            if one.name in _recipe(study, one.scheme, scenario):
                schemes.setdefault(one.scheme, one.name)
        if len(schemes) > 1:
            a, b = list(schemes.values())[:2]
            found.append((a, b))
    names = [one.name for one in study.networks]
    if not found and len(names) > 1:
        found = [(names[0], names[1])]
    return found


def _axis(names: tuple[str, ...]) -> dict[str, Any]:
    """Layer names, and the stages' names for where those do not fit."""
    found = stages(names)
    return {
        "names": list(names),
        "stages": [[(one.start + one.stop - 1) / 2, one.label] for one in found],
        "cuts": [one.stop - 0.5 for one in found[:-1]],
    }


def _palette() -> list[str]:
    from matplotlib.colors import to_hex

    chosen = colormap(SEQUENTIAL)
    return [to_hex(chosen(i)) for i in range(256)]


def _library() -> str:
    """bokeh.min.js: the core alone, without widgets, tables and mathematics."""
    from bokeh.resources import Resources

    inline = Resources(mode="inline", components=["bokeh"], log_level="warn")
    return "\n".join(inline.js_raw).replace("</script", "<\\/script")


def _figures(panels: list[str]) -> tuple[str, dict[str, str]]:
    """Empty heatmaps; explorer.js fills their sources and marks the layer that was picked."""
    from bokeh.embed import components

    script, divs = components({name: _figure(name) for name in panels}, wrap_script=False)
    # Ids are drawn at random, or count on from earlier pages; the same study gives the same page.
    random = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    for pattern, word in ((random, "root-"), (r'(?<=")p\d+(?=")', "m")):
        script, *texts = _renamed([script, *divs.values()], pattern, word)
        divs = dict(zip(divs, texts, strict=True))
    return script.replace("</script", "<\\/script"), divs


def _renamed(texts: list[str], pattern: str, word: str) -> list[str]:
    """What matches the pattern becomes word0, word1, ... by its first place in the first text."""
    ids = {one: f"{word}{i}" for i, one in enumerate(dict.fromkeys(re.findall(pattern, texts[0])))}

    def new(hit: re.Match[str]) -> str:
        return ids.get(hit[0], hit[0])

    return [re.sub(pattern, new, text) for text in texts]


def _figure(name: str) -> Any:
    from bokeh.events import Tap
    from bokeh.models import (
        ColumnDataSource,
        CustomJS,
        FixedTicker,
        HoverTool,
        LinearColorMapper,
        Range1d,
    )
    from bokeh.models.annotations import BoxAnnotation
    from bokeh.plotting import figure

    fig: Any = figure(
        name=name, width=300, height=300, sizing_mode="scale_width", toolbar_location=None,
        x_range=Range1d(start=-0.5, end=0.5), y_range=Range1d(start=-0.5, end=0.5), tools=[],
        min_border_left=54, min_border_bottom=54, min_border_top=2, min_border_right=2,
        background_fill_color=None, border_fill_color=None, outline_line_color=None,
        output_backend="canvas",
    )  # fmt: skip
    columns = ("x", "y", "value", "row", "column", "text", "range")
    source = ColumnDataSource({column: [] for column in columns}, name=f"{name}:cells")
    mapper = LinearColorMapper(
        palette=_palette(), low=0, high=1, low_color=UNDER, high_color=OVER, nan_color=NOT_DEFINED
    )
    color = {"field": "value", "transform": mapper}
    # A line of the same colour closes the hairline between neighbours.
    cells = fig.rect(
        "x", "y", width=1, height=1, source=source, fill_color=color, line_color=color,
        line_width=0.7, line_join="miter", name=f"{name}:map",
    )  # fmt: skip
    cells.nonselection_glyph = cells.selection_glyph = None
    ends = ("x0", "y0", "x1", "y1")
    cuts = ColumnDataSource({column: [] for column in ends}, name=f"{name}:cuts")
    fig.segment(
        "x0", "y0", "x1", "y1", source=cuts, line_color="white", line_width=0.8, line_alpha=0.75
    )
    for side in ("row", "column"):
        for width, ink in ((4.0, "black"), (1.8, "white")):
            fig.add_layout(
                BoxAnnotation(
                    name=f"{name}:{side}", visible=False, fill_alpha=0, line_color=ink,
                    line_alpha=1, line_width=width, level="overlay",
                )
            )  # fmt: skip
    fig.add_tools(
        HoverTool(
            renderers=[cells],
            tooltips='<div class="tip">rows @row<br>columns @column<br><b>@text</b> @range</div>',
            point_policy="follow_mouse",
        )
    )
    code = "window.repsim.pick(cb_obj.origin.name, cb_obj.x, cb_obj.y)"
    fig.js_on_event(Tap, CustomJS(code=code))
    for axis in (*fig.xaxis, *fig.yaxis):
        axis.ticker = FixedTicker(ticks=[])
        axis.major_tick_line_color = None
        axis.minor_tick_line_color = None
        axis.axis_line_color = None
        axis.major_label_standoff = 2
        axis.major_label_text_font = _FONT
        axis.major_label_text_font_size = "10.5px"
        axis.major_label_text_color = "#333333"
    fig.xaxis.major_label_orientation = math.pi / 2
    fig.grid.visible = False
    return fig
