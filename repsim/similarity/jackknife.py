"""Standard errors and intervals by the delete-one-group jackknife.

Never a bootstrap with replacement: an image drawn twice is a pair of equal samples off the
diagonal, and independent representations then look similar.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


def standard_error(value: Any, replicates: Any, sizes: NDArray[np.int64]) -> Any:
    """Of one number, or of each of an array.

    Groups of unequal size m_g are weighted as in Busing, Meijer and van der Leeden (1999),
    equation 9; with equal sizes it is the usual √((G-1)/G·Σ(θ_g - θ̄)²).

    Args:
        value: (...) the statistic of all samples.
        replicates: (G, ...) the same without each group.
        sizes: (G,) units in each group.
    """
    shape = (-1, *(1,) * (np.ndim(replicates) - 1))
    groups = len(sizes)
    ratio = (sizes.sum() / sizes).reshape(shape)  # h_g = n / m_g
    pseudo = ratio * value - (ratio - 1) * replicates
    centre = groups * np.asarray(value) - ((1 - 1 / ratio) * replicates).sum(0)
    return np.sqrt(((pseudo - centre) ** 2 / (ratio - 1)).sum(0) / groups)


def interval(value: Any, replicates: Any, sizes: NDArray[np.int64]) -> tuple[Any, Any]:
    """95% interval value ± t·(standard error), t with G - 1 degrees of freedom; never clamped."""
    from scipy.special import stdtrit

    half = stdtrit(len(sizes) - 1, (1 + CONFIDENCE) / 2) * standard_error(value, replicates, sizes)
    return value - half, value + half
