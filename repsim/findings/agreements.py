"""What networks, or probes of them, said of each image: how often they agree and are right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.evaluate import accuracy_interval
from repsim.findings.quantity import Quantity, Term

if TYPE_CHECKING:
    import pandas as pd

PREDICTIONS, PROBED = "predictions.csv", "probe_predictions.csv"
LABEL = "label"
GROUPS = 50  # jackknife groups of images
PREDICTION, PROBE = "prediction", "probe"
# Before what is compared; agreement itself has no word before it.
WRONG, KAPPA, ACCURACY = "both wrong of ", "kappa of ", "accuracy of "

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Predictions:
    """Numbers of two networks' predictions, or of probes of theirs, image by image.

    - `[prediction](a:pgd, b:pgd)`: the part of the images that both put in one class. Two networks
      of accuracies p and q agree on at most 1 - |p - q| of them.
    - `[both wrong of prediction](...)`: of the images that both get wrong, the part that both put
      in one class: no accuracy bounds it. `[both wrong of prediction & c:pgd & d:pgd](...)`: of
      those that c and d get wrong, too.
    - `[kappa of prediction](...)`: Cohen's kappa, agreement beyond that of independent predictions
      with the same frequencies.
    - `[accuracy of prediction](a:pgd, a:pgd)`, of one network.

    `probe LAYER` in the place of `prediction`: the same of probes. The first three have replicates,
    so that differences are paired: each leaves out every G-th image, of the numerator and of the
    denominator of a ratio. The interval of an accuracy is exact binomial.

    Args:
        table: a row an image; label, its class, and columns NETWORK:CONDITION with the predicted
            class, of probes LAYER|NETWORK:CONDITION; below 0 where there is none.
        file: the file of a study that holds it.

    Raises:
        UserError: a table without labels, as earlier versions wrote them.
    """

    def __init__(self, table: pd.DataFrame, file: str = PREDICTIONS) -> None:
        if LABEL not in table:
            raise UserError(
                f"{file}: expected predictions with a column {LABEL}, the images' classes; there "
                "is none (earlier versions wrote none); make it again with repsim reproduce"
            )
        self.file = file
        self._labels = table[LABEL].to_numpy()
        self._said = {str(name): table[name].to_numpy() for name in table if ":" in str(name)}
        self.layers = list(dict.fromkeys(
            name.partition("|")[0] for name in self._said if "|" in name
        ))  # fmt: skip
        self._group = np.arange(len(table)) % max(min(GROUPS, len(table)), 1)

    def find(self, part: str, x: str, y: str) -> Quantity | None:
        """One pair; None where a network has no predictions.

        Where there is nothing to take a part of, as no image that both get wrong, the value is nan.
        """
        before = next((one for one in (WRONG, KAPPA, ACCURACY) if part.startswith(one)), "")
        kind, *others = part.removeprefix(before).split(" & ")
        start = f"{kind.removeprefix(f'{PROBE} ')}|" if kind.startswith(f"{PROBE} ") else ""
        columns = [self._said.get(f"{start}{one}") for one in (x, y, *others)]
        said = [one for one in columns if one is not None]
        if len(said) < len(columns) or (not start and kind != PREDICTION):
            return None
        term = Term(part, x, y)
        if before == ACCURACY:
            return self._accuracy(term, said[0]) if x == y else None
        seen = np.all([one >= 0 for one in said], axis=0)
        group, sizes = self._group[seen], np.bincount(self._group[seen])
        if len(sizes) < 2 or not sizes.all():
            return None  # no replicate without a group that is empty
        labels, said = self._labels[seen], [one[seen] for one in said]
        ours, theirs = said[:2]
        asked = np.ones(len(labels), dtype=np.bool_)
        if before == KAPPA:
            value, each = _kappa(ours, theirs, group)
        else:
            if before == WRONG:
                asked = np.all([one != labels for one in said], axis=0)
            value, each = _ratio(asked & (ours == theirs), asked, group)
        samples = int(asked.sum())
        return Quantity(
            ((1.0, term),), value, each, sizes.astype(np.int64), None, self.file, samples
        )

    def _accuracy(self, term: Term, said: Ints) -> Quantity | None:
        seen = said >= 0
        right, count = int((said == self._labels)[seen].sum()), int(seen.sum())
        if not count:
            return None
        lower, upper = accuracy_interval(right, count)
        return Quantity(
            ((1.0, term),), right / count, None, np.zeros(0, dtype=np.int64), (lower, upper),
            self.file, count,
        )  # fmt: skip


def _ratio(top: NDArray[np.bool_], bottom: NDArray[np.bool_], group: Ints) -> tuple[float, Floats]:
    """Σ top / Σ bottom of all images (n,), and without each group (G,); nan for 0 / 0."""
    with np.errstate(invalid="ignore"):
        above, below = (_without(_sums(one, group)) for one in (top, bottom))
        return float(np.divide(top.sum(), bottom.sum())), above / below


def _kappa(x: Ints, y: Ints, group: Ints) -> tuple[float, Floats]:
    """Cohen's kappa of all images (n,), and without each group (G,).

    nan where agreement is certain, because both only ever say one class.
    """
    groups, classes = 1 + int(group.max()), 1 + int(max(x.max(), y.max()))
    counts = [
        np.bincount(group * classes + one, minlength=groups * classes).reshape(groups, classes)
        for one in (x, y)
    ]  # (G, classes) each: how often each class is said in each group
    same = _sums(x == y, group)

    def kappa(same: Floats, a: Floats, b: Floats) -> Floats:
        count = a.sum(-1)
        chance = (a * b).sum(-1) / count**2
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = (same / count - chance) / (1 - chance)
        return np.where(chance < 1, found, np.nan)

    whole = kappa(same.sum(), *(one.sum(0).astype(np.float64) for one in counts))
    each = kappa(_without(same), *(_without(one.astype(np.float64)) for one in counts))
    return float(whole), each


def _sums(each: NDArray[np.bool_], group: Ints) -> Floats:
    """How many there are (n,) in each group (G,)."""
    return np.bincount(group, weights=each).astype(np.float64)


def _without(sums: Floats) -> Floats:
    """(G, ...) sums of groups -> the total without each."""
    found: Floats = sums.sum(0) - sums
    return found
