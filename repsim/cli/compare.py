"""`repsim compare`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.cka import csv_option, layers_option, pair_option, run, stores_argument
from repsim.cli.options import out_option, output_options, overwrite_option


@click.command()
@stores_argument
@click.option(
    "--measure",
    required=True,
    metavar="NAME|FILE.py:FUNCTION",
    help="cka, or your own function (X, Y) -> number of arrays (samples, features).",
)
@pair_option
@layers_option
@out_option("compare.h5", "The result to write; the figure goes beside it as .png.")
@csv_option
@overwrite_option
@output_options
def compare(
    stores: tuple[Path, ...], measure: str, pair: str, patterns: tuple[str, ...], out: Path,
    csv: Path | None, overwrite: bool, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Compare all layers of one condition with all layers of another by any measure.

    \b
    repsim compare --measure mine.py:same_norms --pair clean,adv
    """
    run(stores, pair, patterns, out, csv, overwrite, json_file, quiet, measure=measure)
