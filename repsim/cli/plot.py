"""`repsim plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from repsim.cli.options import out_option

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["heatmap", "difference", "diagonal", "overview"]),
    default="heatmap",
    show_default=True,
    help="heatmap: panels on one scale; difference: the first minus the second; diagonal: "
    "same-layer curves; overview: clean with attacked of several networks, and the curves.",
)
@click.option(
    "--title",
    "titles",
    multiple=True,
    help="A panel's title, one for each result; of an overview one for each network.",
)
@click.option(
    "--mask",
    type=click.Choice(["null", "max", "zero"]),
    help="Grey out cells of heatmaps: null, not above chance each by itself; max, not above the "
    "largest that chance gives; zero, the interval holds 0.",
)
@out_option(None, "The figure: .png, .pdf or .svg.")
def plot(
    results: tuple[Path, ...], kind: str, titles: tuple[str, ...], mask: str | None, out: Path
) -> None:
    """Draw results of cka and compare.

    \b
    repsim plot cka.h5 --out heatmap.png
    repsim plot st.h5 at.h5 --title standard --title adversarial --out both.pdf
    repsim plot tested.h5 --mask max --out tested.pdf
    repsim plot st.h5 at.h5 --kind difference --out difference.png
    repsim plot st-adv.h5 st-noise.h5 at-adv.h5 at-noise.h5 --kind overview --out paper.pdf
    """
    from repsim.cli.common import check_outputs
    from repsim.plot import save_figure
    from repsim.result import load_result

    check_outputs(out)
    loaded = [load_result(path) for path in results]
    save_figure(_figure(kind, loaded, list(titles), mask), out)
    click.echo(f"wrote {out}")


def _figure(kind: str, results: list[xr.Dataset], titles: list[str], mask: str | None) -> Figure:
    from matplotlib.figure import Figure

    from repsim.errors import UserError
    from repsim.plot import clean_vs_attacked, diagonal, difference, panels
    from repsim.plot.sides import several_sides, sides_figure

    networks = list(dict.fromkeys(str(r["x_model"].values[0]) for r in results))
    panel_count = {"overview": len(networks), "difference": 1}.get(kind, len(results))
    if titles and len(titles) != panel_count:
        raise UserError(f"--title expects {panel_count} for --kind {kind}; got {len(titles)}")
    if kind == "heatmap":
        if len(results) == 1 and mask is None and several_sides(results[0]):
            return sides_figure(results[0], titles[0] if titles else None)
        return panels(results, titles=titles or None, mask=mask)
    if mask:
        raise UserError(f"--mask belongs to --kind heatmap; got --kind {kind}")
    if kind == "overview":
        by_network: dict[str, dict[str, xr.Dataset]] = {name: {} for name in (titles or networks)}
        for result in results:
            place = networks.index(str(result["x_model"].values[0]))
            condition = str(result["y_condition"].values[0])
            by_network[(titles or networks)[place]][condition] = result
        return clean_vs_attacked(by_network)
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    ax = figure.add_subplot()
    if kind == "diagonal":
        diagonal(results, ax, labels=titles or None)
    elif len(results) != 2:
        raise UserError(f"--kind difference expects two results; got {len(results)}")
    else:
        difference(results[0], results[1], ax, title=titles[0] if titles else None)
    return figure
