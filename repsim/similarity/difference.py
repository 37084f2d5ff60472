"""The difference of two estimates, of the same samples or of others, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repsim.similarity.jackknife import CONFIDENCE, interval, standard_error


@dataclass(frozen=True)
class Estimate:
    """A number or an array with its jackknife.

    Attributes:
        value: (...).
        replicates: (G, ...) the same without each group; None where there are none.
        sizes: (G,) units in each group.
    """

    value: Any
    replicates: Any | None
    sizes: NDArray[np.int64]


def difference_interval(a: Estimate, b: Estimate, *, paired: bool) -> tuple[Any, Any] | None:
    """95% interval of a - b; None where one of them has no replicates.

    Paired: the replicates without the same group are subtracted from one another, so what both
    share cancels. Otherwise the two are taken as independent: the variances add, and t has the
    degrees of freedom of Welch (1947), (v_a + v_b)²/(v_a²/(G_a - 1) + v_b²/(G_b - 1)).

    Args:
        a: the first.
        b: the second, of the same shape.
        paired: both left out the same samples in each group.
    """
    if a.replicates is None or b.replicates is None:
        return None
    value = np.asarray(a.value, dtype=np.float64) - np.asarray(b.value, dtype=np.float64)
    if paired:
        each = np.asarray(a.replicates, np.float64) - np.asarray(b.replicates, np.float64)
        return interval(value, each, a.sizes)
    from scipy.special import stdtrit

    first, second = (
        np.asarray(
            standard_error(one.value, np.asarray(one.replicates, np.float64), one.sizes)
        ) ** 2
        for one in (a, b)
    )  # fmt: skip
    spread = first**2 / (len(a.sizes) - 1) + second**2 / (len(b.sizes) - 1)
    freedom = np.where(spread > 0, (first + second) ** 2 / np.where(spread > 0, spread, 1), np.inf)
    half = np.where(
        spread == 0, 0.0, stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(first + second)
    )
    return value - half, value + half
