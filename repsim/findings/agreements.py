"""How often two networks say the same, and how often each is right: means of rows of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from repsim.errors import UserError
from repsim.findings.quantity import Quantity, Term, side

if TYPE_CHECKING:
    import pandas as pd

AGREEMENT, PREDICTIONS = "agreement.csv", "predictions.csv"
PROBED = "probe_predictions.csv"
GROUPS = 50  # jackknife groups of images
COLUMNS = ("a", "b", "what", "layer", "condition", "agreement")
PREDICTION, PROBE, KAPPA = "prediction", "probe", "kappa of "
ACCURACY = "accuracy"


class Predictions:
    """The part of the images that two networks, or probes of them, put in one class.

    `[prediction](a:pgd, b:pgd)`, `[probe LAYER](a:pgd, b:pgd)`.

    With replicates, so that differences are paired: each leaves out every G-th image.

    Args:
        table: a row an image; columns NETWORK:CONDITION with the predicted class, of probes
            LAYER|NETWORK:CONDITION; below 0 where there is none.
        file: the file of a study that holds it.
    """

    def __init__(self, table: pd.DataFrame, file: str = PREDICTIONS) -> None:
        self.file = file
        self._said = {str(name): table[name].to_numpy() for name in table if ":" in str(name)}
        self.layers = list(dict.fromkeys(
            name.partition("|")[0] for name in self._said if "|" in name
        ))  # fmt: skip
        self._group = np.arange(len(table)) % max(min(GROUPS, len(table)), 1)

    def find(self, part: str, x: str, y: str) -> Quantity | None:
        """One pair; None where a network has no predictions."""
        start = f"{part.removeprefix(f'{PROBE} ')}|" if part.startswith(f"{PROBE} ") else ""
        ours, theirs = (self._said.get(f"{start}{one}") for one in (x, y))
        if ours is None or theirs is None or (not start and part != PREDICTION):
            return None
        seen = (ours >= 0) & (theirs >= 0)
        groups = self._group[seen]
        sizes = np.bincount(groups)
        if len(sizes) < 2 or not sizes.all():
            return None
        same = np.bincount(groups, weights=ours[seen] == theirs[seen])
        total = int(sizes.sum())
        return Quantity(
            ((1.0, Term(part, x, y)),), float(same.sum() / total),
            (same.sum() - same) / (total - sizes), sizes.astype(np.int64), None, self.file,
        )  # fmt: skip


class Agreements:
    """Terms of a table: `[prediction](a:pgd, b:pgd)`, `[probe LAYER](...)`, `[kappa of ...](...)`.

    The table has an interval a row and no replicates, and its rows are of the same images. The
    interval of a sum is therefore as wide as all together, which holds however they depend on one
    another.

    Args:
        table: columns a, b, what, layer, condition, agreement; lower, upper, kappa where known.
        file: the file of a study that holds it.

    Raises:
        UserError: a column is not there.
    """

    def __init__(self, table: pd.DataFrame, file: str = AGREEMENT) -> None:
        absent = [name for name in COLUMNS if name not in table]
        if absent:
            raise UserError(
                f"agreements expect the columns {', '.join(COLUMNS)}; not there: "
                f"{', '.join(absent)}"
            )
        self.file = file
        self.layers: list[str] = []
        self._rows: dict[tuple[str, str, str, str], tuple[float, float | None, float]] = {}
        for row in table.to_dict("records"):
            what = str(row["what"])
            if what == PROBE:
                layer = str(row["layer"])
                what = f"{PROBE} {layer}"
                if layer not in self.layers:
                    self.layers.append(layer)
            half = (_number(row.get("upper")) - _number(row.get("lower"))) / 2
            found = (
                _number(row["agreement"]), None if np.isnan(half) else half,
                _number(row.get("kappa")),
            )  # fmt: skip
            for a, b in ((row["a"], row["b"]), (row["b"], row["a"])):
                self._rows[what, str(a), str(b), str(row["condition"])] = found

    def find(self, part: str, x: str, y: str) -> Quantity | None:
        """One row; of kappa without an interval."""
        (a, condition), (b, other) = side(x), side(y)
        row = self._rows.get((part.removeprefix(KAPPA), a, b, condition))
        if row is None or condition != other:
            return None
        agreement, half, kappa = row
        value, half = (kappa, None) if part.startswith(KAPPA) else (agreement, half)
        none = np.zeros(0, dtype=np.int64)
        return Quantity(((1.0, Term(part, x, y)),), value, None, none, half, self.file)


class Accuracies:
    """`[accuracy](a:pgd, a:pgd)` of networks, `[accuracy of probe LAYER](...)` of probes.

    Args:
        table: columns network, condition, accuracy, lower, upper; or a probes' table, of which
            probes trained on clean images count, on images that were not made against them.
        file: the file of a study that holds it.
    """

    def __init__(self, table: pd.DataFrame, file: str) -> None:
        self.file = file
        self._rows: dict[tuple[str, str], tuple[float, float]] = {}
        for row in table.to_dict("records"):
            part, condition = ACCURACY, row.get("condition")
            if "layer" in row:
                if row["train"] != "clean" or row["attack"] == "adaptive":
                    continue
                part, condition = f"{ACCURACY} of {PROBE} {row['layer']}", row["test"]
            half = (_number(row.get("upper")) - _number(row.get("lower"))) / 2
            self._rows[part, f"{row['network']}:{condition}"] = _number(row["accuracy"]), half

    def find(self, part: str, x: str, y: str) -> Quantity | None:
        """One row; both sides are the same."""
        row = self._rows.get((part, x))
        if row is None or x != y:
            return None
        none = np.zeros(0, dtype=np.int64)
        half = None if np.isnan(row[1]) else row[1]
        return Quantity(((1.0, Term(part, x, y)),), row[0], None, none, half, self.file)


def _number(value: Any) -> float:
    """Of a cell of a table; nan for an empty one."""
    return float("nan") if value is None or value == "" else float(value)
