"""One number again from the files of a study, by the text that stands beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from repsim.errors import UserError
from repsim.findings.agreements import Predictions
from repsim.findings.cells import Similarities
from repsim.findings.quantity import Source, parse
from repsim.findings.ranks import of_recipes

if TYPE_CHECKING:
    import pandas as pd

RANKS = re.compile(r"ranks \[([^\]]+)\]\(([^,()]+), ([^,()]+)\): (.+)")


def again(file: str, *rest: str) -> tuple[float, tuple[float, float] | None]:
    """The number, and its interval where there is one.

    Args:
        file: similarity.h5 or within.h5 as `save_pairs` writes them, predictions.csv or
            probe_predictions.csv.
        rest: the number as `Number.command` has it; of ranks before it accuracy.csv:CONDITION.

    Raises:
        UserError: no such file, or a number that is not in it.
    """
    source = _source(file)
    if len(rest) == 2:
        return _ranks(source, *rest)
    if len(rest) != 1:
        raise UserError(f"expected one number in quotes; got {len(rest)} words after {file}")
    found = parse(rest[0], source)
    return found.value, found.interval()


def _source(file: str) -> Source:
    if file.endswith(".csv"):
        return Predictions(_table(file), file)
    from repsim.result.pairs import load_pairs

    return Similarities(load_pairs(file), file)


def _table(file: str) -> pd.DataFrame:
    import pandas as pd

    if not Path(file).is_file():
        raise UserError(f"{file}: expected a table of a study; there is no such file")
    return pd.read_csv(file, keep_default_na=False)


def _ranks(
    source: Source, accuracy: str, text: str
) -> tuple[float, tuple[float, float] | None]:  # fmt: skip
    """Spearman's ρ between similarity and accuracy of some recipes, means over their networks."""
    found = RANKS.fullmatch(text)
    file, _, condition = accuracy.rpartition(":")
    if not found or not file:
        raise UserError(
            "ranks expect accuracy.csv:CONDITION and ranks [PART](X, Y): NETWORK + NETWORK, "
            f"NETWORK, ...; got {accuracy} and {text!r}"
        )
    table = _table(file)
    rows = table[table["condition"] == condition]
    right = dict(zip(rows["network"], rows["accuracy"].astype(float), strict=True))
    part, x, y, names = found.groups()
    recipes = [recipe.split(" + ") for recipe in names.split(", ")]
    networks = [one for recipe in recipes for one in recipe]
    if absent := [one for one in networks if one not in right]:
        raise UserError(
            f"{file}: expected {condition} of every network; not there: {', '.join(absent)}"
        )
    alike = {one: parse(f"[{part}]({one}:{x}, {one}:{y})", source).value for one in networks}
    return of_recipes(recipes, alike, right)
