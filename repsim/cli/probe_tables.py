"""The tables that `repsim probe` prints: accuracies, and agreement between networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.common import percent, print_table
from repsim.errors import UserError
from repsim.files import replacing

if TYPE_CHECKING:
    import pandas as pd

    from repsim.probe import ProbeReport


def print_accuracies(report: ProbeReport) -> None:
    """A table for each training: a row a layer, a column for each test and target."""
    retrained = report.table["solver"].iloc[0] == "retrain"
    for train, table in report.table.groupby("train", sort=False):
        columns = list(dict.fromkeys(zip(table["test"], table["attack"], strict=True)))
        rows = []
        for layer in report.layers:
            part = table[table["layer"] == layer].set_index(["test", "attack"])
            first = part.iloc[0]
            cells = [
                percent(part.loc[key, "accuracy"], (part.loc[key, "lower"], part.loc[key, "upper"]))
                for key in columns
            ]
            rows.append([layer, f"{first['used_features']} ({first['reduce']})", *cells])
        what = "all after the layer retrained" if retrained else f"{first['solver']} probes trained"
        print_table(
            f"{report.network}: {what} on {train}, accuracy on {len(report.labels)} test images "
            "(95% intervals)",
            ["layer", "features", *map(_column, columns)], rows,
        )  # fmt: skip
    if (report.table["attack"] != "none").any():
        ours = "the retrained network" if retrained else "the probe"
        click.echo(f"transfer: attacked against the whole network; adaptive: against {ours}")


def print_agreements(table: pd.DataFrame) -> None:
    """A table for each pair of networks and training: a row a layer, a column for each test."""
    for (a, b, train), part in table.groupby(["a", "b", "train"], sort=False):
        columns = list(dict.fromkeys(zip(part["test"], part["attack"], strict=True)))
        rows = []
        for layer, of_layer in part.groupby("layer_a", sort=False):
            found = of_layer.set_index(["test", "attack"])
            cells = [
                percent(one["agreement"], (one["lower"], one["upper"])) + f" κ {one['kappa']:.2f}"
                for one in (found.loc[key] for key in columns if key in found.index)
            ]
            rows.append([str(layer), *cells])
        print_table(
            f"{a} and {b}: how often probes trained on {train} say the same of "
            f"{part['samples'].iloc[0]} images (95% intervals; Cohen's kappa)",
            ["layer", *map(_column, columns)], rows,
        )  # fmt: skip


def tell_agreement(
    results: Sequence[tuple[Path, ProbeReport]], path: Path, *, quiet: bool
) -> list[dict[str, Any]]:
    """Write and print how often probes of every two results say the same; the rows."""
    from repsim.probe.agreement import agreements, different_attacks

    reports = _by_name(results)
    table = agreements(reports)
    with replacing(path) as beside:
        table.to_csv(beside, index=False)
    if not quiet:
        for note in different_attacks(reports):
            click.echo(note, err=True)
        print_agreements(table)
    # A kappa that is no number has none in JSON either.
    rows = table.astype(object).where(table.notna(), None)
    return [{str(key): one for key, one in row.items()} for row in rows.to_dict("records")]


def _by_name(results: Sequence[tuple[Path, ProbeReport]]) -> dict[str, ProbeReport]:
    """Reports by their network's name; with that of the file where two are of one network.

    Raises:
        UserError: results that no name tells apart.
    """
    networks = [report.network for _, report in results]
    found = {
        report.network if networks.count(report.network) == 1
        else f"{report.network} ({path.stem})": report
        for path, report in results
    }  # fmt: skip
    if len(found) < len(results):
        raise UserError(
            f"--agree expects results that their network or file tells apart; got "
            f"{', '.join(str(path) for path, _ in results)}; rename one"
        )
    return found


def _column(key: tuple[str, str]) -> str:
    test, attack = key
    return test + ("" if attack == "none" else f" ({attack})")
