"""`repsim arrays`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.options import out_option, output_options, overwrite_option


def _mapping(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> dict[str, str] | None:
    """`LAYER=PATH` once or more -> a dictionary."""
    found: dict[str, str] = {}
    for text in value:
        layer, equals, place = text.partition("=")
        if not (layer and equals and place):
            raise click.BadParameter(f"expected LAYER=PATH; got {text!r}")
        if layer in found:
            raise click.BadParameter(f"expected each layer once; got {layer!r} twice")
        found[layer] = place
    return found or None


@click.command()
@click.argument("x", type=click.Path(path_type=Path))
@click.argument("y", type=click.Path(path_type=Path))
@click.option(
    "--map",
    "map_x",
    multiple=True,
    callback=_mapping,
    metavar="LAYER=PATH",
    help="A layer and where it is in the HDF5 file; may be repeated. [default: all data "
    "sets of two dimensions or more]",
)
@click.option(
    "--map-y",
    multiple=True,
    callback=_mapping,
    metavar="LAYER=PATH",
    help="The same for Y. [default: --map, if Y is an HDF5 file]",
)
@click.option(
    "--ids",
    "ids_x",
    metavar="FILE.npy|PATH",
    help="Sample ids of X, to match rows by: a .npy file or a path in the HDF5 file.",
)
@click.option("--ids-y", metavar="FILE.npy|PATH", help="The same for Y. [default: --ids]")
@click.option(
    "--measure", default="cka", show_default=True, metavar="NAME", help="As in repsim compare."
)
@click.option(
    "--estimator",
    type=click.Choice(["debiased", "biased", "minibatch"]),
    help="Of CKA. [default: debiased]",
)
@click.option("--kernel", metavar="linear|rbf[:FRACTION]", help="Of CKA. [default: linear]")
@click.option("--batch-size", type=int, help="Of the minibatch estimator. [default: 256]")
@click.option(
    "--csv", type=click.Path(path_type=Path), metavar="FILE", help="Also write a line a cell."
)
@out_option("arrays.h5", "The result to write; the figure goes beside it as .png.")
@overwrite_option
@output_options
def arrays(
    x: Path, y: Path, map_x: dict[str, str] | None, map_y: dict[str, str] | None,
    ids_x: str | None, ids_y: str | None, measure: str, estimator: str | None, kernel: str | None,
    batch_size: int | None, csv: Path | None, out: Path, overwrite: bool, json_file: Path | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Compare activations that something else computed: .npy, .npz or HDF5 files.

    X makes the rows, Y the columns; each array is (samples, features...). Without ids, row i of
    both is taken for the same sample.

    \b
    repsim arrays a.npy b.npy
    repsim arrays a.h5 b.h5 --map block1=features/b1 --map pooled=features/gap --ids meta/id
    """
    import json

    from repsim.cli.common import check_outputs, echo_next, number, write_json
    from repsim.errors import UserError
    from repsim.interchange import compare_arrays
    from repsim.interchange.arrays import HDF5
    from repsim.plot import panels, save_figure
    from repsim.progress import reporter
    from repsim.result import save_result, to_csv

    figure = out.with_suffix(".png")
    check_outputs(out, figure, csv, json_file)
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} is there; give another name or --overwrite")
    if map_y is None and y.suffix.lower() in HDF5:
        map_y = map_x
    result = compare_arrays(
        x, y, map_x=map_x, map_y=map_y, ids_x=ids_x, ids_y=ids_y or ids_x, measure=measure,
        estimator=estimator, kernel=kernel, batch_size=batch_size,
        progress=reporter(quiet=quiet),
    )  # fmt: skip
    save_result(result, out)
    save_figure(panels([result]), figure)
    if csv is not None:
        to_csv(result, csv)
    summary = json.loads(result.attrs["summary"])
    rows, columns = result["similarity"].shape
    write_json(json_file, {
        "measure": result.attrs["measure"], **summary,
        "similarity": result["similarity"].values.tolist(),
        "notes": json.loads(result.attrs["notes"]),
    })  # fmt: skip
    if quiet:
        return
    for note in json.loads(result.attrs["notes"]):
        click.echo(note, err=True)
    kind = " ".join(result.attrs[key] for key in ("estimator", "kernel", "measure")
                    if result.attrs[key])  # fmt: skip
    click.echo(f"{kind}, {rows} × {columns} layers, {summary['samples']} samples")
    if rows == columns == 1:
        bounds = [result[name].values[0, 0] for name in ("lower", "upper") if name in result]
        click.echo(f"similarity: {number(result['similarity'].values[0, 0], bounds or None)}")
    for key in ("alignment_mean", "alignment_last_third", "long_range"):
        if summary.get(key) is not None:
            click.echo(f"{key}: {number(summary[key], summary.get(f'{key}_ci'))}")
    click.echo(f"wrote {out} and {figure}")
    echo_next(f"repsim plot {out} --out heatmap.pdf", f"repsim info {out}")
