"""`repsim cka`, and what it shares with `repsim compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import out_option, output_options, overwrite_option

if TYPE_CHECKING:
    import xarray as xr

    from repsim.pair import PairReport

DEFAULT_STORE = Path("features.h5")

stores_argument = click.argument("stores", nargs=-1, type=click.Path(path_type=Path))
pair_option = click.option(
    "--pair", default="clean,adv", show_default=True, metavar="A,B",
    help="Rows and columns: CONDITION or STORE:CONDITION; adv is the store's one attack.",
)  # fmt: skip
layers_option = click.option(
    "--layers", "patterns", multiple=True, metavar="PATTERN",
    help="Only layers that match; may be repeated. [default: all of the store]",
)  # fmt: skip
csv_option = click.option(
    "--csv", type=click.Path(path_type=Path), metavar="FILE", help="Also write a line a cell."
)


@click.command()
@stores_argument
@pair_option
@click.option(
    "--estimator",
    type=click.Choice(["debiased", "biased", "minibatch"]),
    default="debiased",
    show_default=True,
)
@click.option(
    "--kernel",
    default="linear",
    show_default=True,
    metavar="linear|rbf[:FRACTION]",
    help="rbf: bandwidth as a fraction of the median distance.",
)
@click.option("--batch-size", type=int, help="Of the minibatch estimator. [default: 256]")
@click.option(
    "--groups",
    type=int,
    default=10,
    show_default=True,
    help="Jackknife groups behind the intervals; 1 for none.",
)
@layers_option
@out_option("cka.h5", "The result to write; the figure goes beside it as .png.")
@csv_option
@overwrite_option
@output_options
def cka(
    stores: tuple[Path, ...], pair: str, estimator: str, kernel: str, batch_size: int | None,
    groups: int, patterns: tuple[str, ...], out: Path, csv: Path | None, overwrite: bool,
    json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """CKA of all layers of one condition with all layers of another, with 95% intervals.

    STORES are files of repsim extract, features.h5 by default.

    \b
    repsim cka --pair clean,adv
    repsim cka st.h5 at.h5 --pair st:adv,at:adv --out across.h5
    repsim cka --pair st.h5:clean,at.h5:clean --out clean.h5
    """
    run(
        stores, pair, patterns, out, csv, overwrite, json_file, quiet,
        measure="cka", estimator=estimator, kernel=kernel, batch_size=batch_size, groups=groups,
    )  # fmt: skip


def run(
    stores: tuple[Path, ...], pair: str, patterns: tuple[str, ...], out: Path, csv: Path | None,
    overwrite: bool, json_file: Path | None, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Compare, write the result and its figure, print the numbers."""
    from repsim.cli.common import check_outputs, echo_next, write_json
    from repsim.errors import UserError
    from repsim.pair import compare_pair
    from repsim.plot import panels, save_figure
    from repsim.progress import reporter
    from repsim.result import save_result, to_csv

    figure = out.with_suffix(".png")
    if out == figure:
        raise UserError(f"--out {out} expects a name for the result, such as {out.stem}.h5; the "
                        f"figure goes beside it as {figure.name}")  # fmt: skip
    check_outputs(out, figure, csv, json_file)
    there = _result_there(out) if out.exists() and not overwrite else None
    if not stores and not all(".h5:" in side for side in pair.split(",")):
        stores = (DEFAULT_STORE,)
    report = compare_pair(
        stores, pair, layers=list(patterns), progress=reporter(quiet=quiet), **options
    )
    if there is not None:
        _refuse_another(out, there, report)
    save_result(report.result, out)
    save_figure(panels([report.result]), figure)
    if csv is not None:
        to_csv(report.result, csv)
    write_json(json_file, report.summary())
    if not quiet:
        for note in report.notes:
            click.echo(note, err=True)
        _print(report)
        click.echo(f"wrote {out} and {figure}")
        echo_next(f"repsim plot {out} --out heatmap.pdf", f"repsim info {out}")


def _result_there(out: Path) -> xr.Dataset:
    """The result that `out` holds; anything else is never written over unasked."""
    from repsim.errors import UserError
    from repsim.result import load_result

    try:
        return load_result(out)
    except UserError:
        raise UserError(
            f"--out {out} is there and is no result of a comparison; give another name"
        ) from None


def _refuse_another(out: Path, there: xr.Dataset, report: PairReport) -> None:
    """A result of the same comparison is replaced; another one is kept."""
    from repsim.errors import UserError

    new = report.result
    different = [
        key
        for key in ("measure", "estimator", "kernel", "provenance")
        if there.attrs.get(key) != new.attrs[key]
    ]
    different += [
        key
        for key in ("x_model", "x_condition", "x_layer", "y_model", "y_condition", "y_layer")
        if list(there[key].values) != list(new[key].values)
    ]
    if different:
        pair = json.loads(there.attrs["summary"]).get("pair")
        raise UserError(
            f"--out {out} holds another comparison ({different[0]} differs; its pair is {pair}); "
            "give another name or --overwrite"
        )


def _print(report: PairReport) -> None:
    from repsim.cli.common import number, print_table

    attrs = report.result.attrs
    rows = []
    for sides, found, word in (
        (report.sides, report.alignment, ""),
        (report.controls, report.control, " (control)"),
    ):
        if sides and found:
            rows.append([
                " with ".join(_short(side, report) for side in sides) + word,
                number(found["alignment_mean"], found.get("alignment_mean_ci")),
                number(found["alignment_last_third"], found.get("alignment_last_third_ci")),
            ])  # fmt: skip
    rows_, columns = report.result["similarity"].shape
    measure = attrs["measure"].upper() if attrs["measure"] == "cka" else attrs["measure"]
    kind = " ".join(part for part in (attrs["estimator"], attrs["kernel"], measure) if part)
    title = f"{kind}, {rows_} × {columns} layers, {attrs['samples']} images (95% intervals)"
    if rows:
        print_table(title, ["same layer", "alignment, mean", "last third"], rows)
        title = ""
    far = [
        [_short((name.partition(":")[0], name.partition(":")[2]), report),
         number(found["long_range"], found.get("long_range_ci"))]
        for name, found in report.long_range.items()
        if found["long_range"] is not None
    ]  # fmt: skip
    if far:
        print_table(title, ["layers far apart", "long-range similarity"], far)


def _short(side: tuple[str, str], report: PairReport) -> str:
    """The condition; with its store's name where there are several."""
    several = len({name.partition(":")[0] for name in report.long_range}) > 1
    return ":".join(side) if several else side[1]
