"""One number again from the files of a study, by the text that stands beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from repsim.errors import UserError
from repsim.findings.agreements import Accuracies, Agreements, Predictions
from repsim.findings.cells import Similarities
from repsim.findings.quantity import Source, parse
from repsim.findings.ranks import rank_correlation

RANKS = re.compile(r"ranks \[([^\]]+)\]\(([^,()]+), ([^,()]+)\): (.+)")


def again(file: str, *rest: str) -> tuple[float, tuple[float, float] | None]:
    """The number, and its interval where there is one.

    Args:
        file: similarity.h5 or within.h5 as `save_pairs` writes them, predictions.csv,
            probe_predictions.csv, agreement.csv, accuracy.csv or probes.csv.
        rest: the number as `Number.command` has it; of ranks before it accuracy.csv:CONDITION.

    Raises:
        UserError: no such file, or a number that is not in it.
    """
    source = _source(file)
    if len(rest) == 2:
        return _ranks(source, *rest), None
    if len(rest) != 1:
        raise UserError(f"expected one number in quotes; got {len(rest)} words after {file}")
    found = parse(rest[0], source)
    return found.value, found.interval()


def _source(file: str) -> Source:
    if file.endswith(".csv"):
        table = _table(file)
        if "agreement" in table:
            return Agreements(table, file)
        return Accuracies(table, file) if "accuracy" in table else Predictions(table, file)
    from repsim.result.pairs import load_pairs

    return Similarities(load_pairs(file), file)


def _table(file: str):  # type: ignore[no-untyped-def]
    import pandas as pd

    if not Path(file).is_file():
        raise UserError(f"{file}: expected a table of a study; there is no such file")
    return pd.read_csv(file, keep_default_na=True, dtype={"layer": str}).fillna({"layer": ""})


def _ranks(source: Source, accuracy: str, text: str) -> float:
    """Spearman's ρ between similarity and accuracy of some networks."""
    found = RANKS.fullmatch(text)
    file, _, condition = accuracy.rpartition(":")
    if not found or not file:
        raise UserError(
            "ranks expect accuracy.csv:CONDITION and ranks [PART](X, Y): NETWORK, NETWORK, ...; "
            f"got {accuracy} and {text!r}"
        )
    table = _table(file)
    right = dict(
        zip(*(table[table["condition"] == condition][one] for one in ("network", "accuracy")),
            strict=True)
    )  # fmt: skip
    part, x, y, names = found.groups()
    networks = names.split(", ")
    alike = [parse(f"[{part}]({one}:{x}, {one}:{y})", source).value for one in networks]
    absent = [one for one in networks if one not in right]
    if absent or np.isnan(alike).any():
        raise UserError(f"{file}: expected {condition} of every network; not there: {absent}")
    return rank_correlation(alike, [float(right[one]) for one in networks])
