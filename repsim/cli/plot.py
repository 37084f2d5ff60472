"""`repsim plot`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.options import out_option


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["heatmap", "difference", "diagonal"]),
    default="heatmap",
    show_default=True,
    help="Heatmaps on one scale; the first minus the second; same-layer curves.",
)
@click.option("--title", "titles", multiple=True, help="A panel's title; once for each result.")
@out_option(None, "The figure: .png, .pdf or .svg.")
def plot(results: tuple[Path, ...], kind: str, titles: tuple[str, ...], out: Path) -> None:
    """Draw results of cka and compare.

    \b
    repsim plot cka.h5 --out heatmap.png
    repsim plot st.h5 at.h5 --title standard --title adversarial --out both.pdf
    repsim plot st.h5 at.h5 --kind difference --out difference.png
    """
    from repsim.cli.common import check_outputs
    from repsim.errors import UserError
    from repsim.plot import diagonal, difference, panels, save_figure
    from repsim.result import load_result

    check_outputs(out)
    if titles and len(titles) != len(results):
        raise UserError(f"--title expects one a result ({len(results)}); got {len(titles)}")
    loaded = [load_result(path) for path in results]
    if kind == "heatmap":
        save_figure(panels(loaded, titles=list(titles) or None), out)
    else:
        from matplotlib.figure import Figure

        fig = Figure(figsize=(4.2, 3.4), layout="constrained")
        ax = fig.add_subplot()
        if kind == "diagonal":
            diagonal(loaded, ax, labels=list(titles) or None)
        elif len(loaded) != 2:
            raise UserError(f"--kind difference expects two results; got {len(loaded)}")
        else:
            difference(loaded[0], loaded[1], ax, title=titles[0] if titles else None)
        save_figure(fig, out)
    click.echo(f"wrote {out}")
