"""`repsim compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.cka import (
    compare_or_run,
    csv_option,
    layers_option,
    pair_option,
    stores_argument,
)
from repsim.cli.live import live_options
from repsim.cli.options import out_option, output_options, overwrite_option

if TYPE_CHECKING:
    from repsim.similarity import Measure


@click.command()
@stores_argument
@click.option(
    "--measure",
    required=True,
    metavar="NAME[,KEY=VALUE...]|FILE.py:FUNCTION",
    help="list shows all names, what they mean and their settings; or your own function (X, Y) -> "
    "number of arrays (samples, features).",
)
@click.option(
    "--groups",
    type=int,
    metavar="N",
    help="Jackknife groups behind the intervals: the work of N + 1 comparisons; 1 for no "
    "intervals.  [default: 10; your own function: 1]",
)
@pair_option
@live_options
@click.option("--batch-size", type=int, help="With --model: images at once.  [default: 256]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the attacks.")
@layers_option
@out_option("compare.h5", "The result to write; the figure goes beside it as .png.")
@csv_option
@overwrite_option
@output_options
@click.pass_context
def compare(
    ctx: click.Context, /, stores: tuple[Path, ...], measure: str, groups: int | None, pair: str,
    patterns: tuple[str, ...], out: Path, csv: Path | None, overwrite: bool,
    json_file: Path | None, quiet: bool, batch_size: int | None, seed: int, **live: Any,
) -> None:  # fmt: skip
    """Compare all layers of one condition with all layers of another by any measure.

    With --model the networks are run instead, as in repsim cka; that goes for every measure that
    needs Gram matrices only.

    \b
    repsim compare --measure list
    repsim compare --measure procrustes --pair clean,adv
    repsim compare --measure svcca,variance=0.9 --groups 1
    repsim compare --measure disagreement st.h5 at.h5 --pair st:adv,at:adv
    repsim compare --measure rsa --model a.pt --model b.pt --attack pgd --out rsa.h5
    repsim compare --measure mine.py:same_norms --pair clean,adv
    """
    if measure == "list":
        _print_measures()
        return
    chosen, groups = _chosen(measure, groups)
    live_only = {"batch_size": batch_size, "seed": seed} if live["models"] else {}
    compare_or_run(
        ctx, live, stores, pair, patterns, out, csv, overwrite, json_file, quiet,
        measure=chosen, groups=groups, **live_only,
    )  # fmt: skip


def _chosen(text: str, groups: int | None) -> tuple[Measure, int]:
    """The measure, and its jackknife groups; a function of the user's has none unless asked."""
    from repsim.errors import UserError
    from repsim.similarity import Measure, Pairwise, parse_measure

    found: Any = parse_measure(text)
    if isinstance(found, Measure):
        return found, 10 if groups is None else groups
    if not callable(found):
        raise UserError(
            f"a measure expects a function (X, Y) -> float of arrays (samples, features); {text} "
            f"is {type(found).__name__}"
        )
    return Pairwise(found, text, intervals=groups is not None), groups or 1


def _print_measures() -> None:
    from dataclasses import fields

    from repsim.cli.common import print_table
    from repsim.similarity import KNOWN

    general = frozenset.intersection(*(one.declaration.invariant for one in KNOWN.values()))
    rows = []
    for name, measure in KNOWN.items():
        about = measure.declaration
        settings = ", ".join(
            f"{field.name}={field.default}" if field.default is not None else field.name
            for field in fields(measure)
        )
        rows.append([
            name, settings, about.larger, f"[{about.low:.3g}, {about.high:.3g}]",
            "" if about.symmetric else "x from y", about.needs,
            ", ".join(one for one in about.strongest if one not in general), about.cost,
        ])  # fmt: skip
    print_table(
        f"measures (all are invariant to a {' and a '.join(sorted(general))})",
        ["name", "settings", "larger means", "range", "direction", "needs", "invariant to", "cost"],
        rows,
    )
