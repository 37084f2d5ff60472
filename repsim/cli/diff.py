"""`repsim diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.cka import csv_option
from repsim.cli.options import out_option, output_options, overwrite_option

if TYPE_CHECKING:
    import xarray as xr

NAMES = {
    "alignment_mean": "alignment, mean",
    "alignment_last_third": "alignment, last third",
    "long_range": "layers far apart, mean",
}


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@out_option("diff.h5", "The result to write; the figure goes beside it as .png.")
@csv_option
@overwrite_option
@output_options
def diff(
    first: Path, second: Path, out: Path, csv: Path | None, overwrite: bool,
    json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """The similarity in FIRST minus the similarity in SECOND, with 95% intervals.

    Both are results of cka or compare with the same layers. Of the same images the difference is
    paired, which makes its interval narrower than that of either.

    \b
    repsim diff at.h5 st.h5 --out at-st.h5
    repsim diff attacked.h5 clean.h5 --out attacked-clean.h5
    """
    from repsim.cli.cka import figure_beside
    from repsim.cli.common import check_outputs, echo_next, write_json
    from repsim.errors import UserError
    from repsim.plot import panels, save_figure
    from repsim.result import difference, load_result, save_result, to_csv

    figure = figure_beside(out)
    check_outputs(out, figure, csv, json_file)
    loaded = [load_result(path) for path in (first, second)]
    distinct = first.stem != second.stem
    names = (first.stem, second.stem) if distinct else (str(first), str(second))
    found = difference(*loaded, names=names)
    if out.exists() and not overwrite and not _same(out, found):
        raise UserError(f"--out {out} is there and holds something else; give another name or "
                        "--overwrite")  # fmt: skip
    save_result(found, out)
    save_figure(panels([found], mask="zero" if "excludes_0" in found else None), figure)
    if csv is not None:
        to_csv(found, csv)
    summary = json.loads(found.attrs["summary"])
    write_json(json_file, summary)
    if quiet:
        return
    for note in json.loads(found.attrs["notes"]):
        click.echo(note, err=True)
    _print(found, summary)
    click.echo(f"wrote {out} and {figure}")
    echo_next(f"repsim plot {out} --mask zero --out difference.pdf", f"repsim info {out}")


def _same(out: Path, found: xr.Dataset) -> bool:
    """Whether the file holds a difference of the same two files."""
    from repsim.errors import UserError
    from repsim.result import load_result

    try:
        there = load_result(out)
    except UserError:
        return False
    return all(there.attrs.get(key) == found.attrs[key] for key in ("difference", "provenance"))


def _print(found: xr.Dataset, summary: dict[str, Any]) -> None:
    from repsim.cli.common import number, print_table

    rows = [
        [
            words,
            *(number(summary[side][name], summary[side][f"{name}_ci"])
              for side in ("first", "second")),
            signed(summary[name], summary[f"{name}_ci"]),
        ]
        for name, words in NAMES.items()
        if summary.get(name) is not None
    ]  # fmt: skip
    shape = " × ".join(map(str, found["similarity"].shape))
    title = f"{found.attrs['difference']}, {shape} layers (95% intervals)"
    if rows:
        print_table(title, ["", *map(str, summary["difference"]), "difference"], rows)
    else:
        click.echo(title)
    if "cells" in summary:
        click.echo(
            f"in {summary['cells_excluding_0']} of {summary['cells']} cells the interval excludes "
            f"0; were there no difference, it would in some {round(0.05 * summary['cells'])}"
        )


def signed(value: float, interval: list[float] | None) -> str:
    """`+0.034 [+0.012, +0.056]`."""
    ends = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return f"{value:+.3f}{ends}"
