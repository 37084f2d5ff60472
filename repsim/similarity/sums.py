"""HSIC of all pairs, and of all pairs without a group of samples, from sums over Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A U-centred Gram matrix whose squares are this small a part of the squared trace is rounding
# error of float32 products (a part of about 4e-15), not a representation.
NOTHING = 1e-12


@dataclass(frozen=True)
class Sums:
    """What HSIC needs of R kernel matrices of n samples, for each of G groups.

    Kernels are in units of `scale` and up to a term u_i + u_j, which HSIC does not see.

    Attributes:
        products: (R, R) sum over i ≠ j of k_ij·l_ij.
        touched: (G, R, R) the part of it with i or j in the group.
        rows: (G, n, R) for each sample i the sum of k_ij over j ≠ i in the group.
        diagonal: (n, R) k_ii.
        group_of: (n,) the group of each sample.
        scale: (R,) what a kernel was divided by.
        form: "gram" or "covariance": how the products were made.
        reasons: for each representation why it has no kernel; "" if it has one.
    """

    products: Array
    touched: Array
    rows: Array
    diagonal: Array
    group_of: NDArray[np.int64]
    scale: Array
    form: str
    reasons: list[str]

    @property
    def samples(self) -> int:
        """n."""
        return len(self.group_of)

    def hsic(self, estimator: str, *, without: int | None = None) -> Array:
        """HSIC of every pair, (R, R) float64.

        Debiased, n ≥ 4 (Song et al. 2012, equation 5):
        [Σ_{i≠j} k_ij·l_ij + 1ᵀK̃1·1ᵀL̃1/((n-1)(n-2)) - 2/(n-2)·1ᵀK̃L̃1] / (n(n-3)).
        Biased (Gretton et al. 2005): tr(KHLH)/(n-1)².

        Args:
            estimator: "debiased" or "biased".
            without: a group whose samples are left out, as if they had never been there.

        Returns:
            nan in the row and the column of a representation that does not vary, or (debiased) no
            more than u_i + u_j does, such as a layer that is active for one sample only.
        """
        products, rows, diagonal = self.products, self.rows.sum(0), self.diagonal
        if without is not None:
            stay = self.group_of != without
            products = products - self.touched[without]
            rows, diagonal = (rows - self.rows[without])[stay], diagonal[stay]
        n = len(rows)
        trace = diagonal.sum(0) - (rows + diagonal).sum(0) / n  # of the centred kernel
        if estimator == "biased":
            rows = rows + diagonal
            total = rows.sum(0)
            square = products + diagonal.T @ diagonal - 2 / n * (rows.T @ rows)
            square += np.outer(total, total) / n**2
            norm = (n - 1) ** 2
        else:
            total = rows.sum(0)
            square = products - 2 / (n - 2) * (rows.T @ rows)
            square += np.outer(total, total) / ((n - 1) * (n - 2))
            norm = n * (n - 3)
        nothing = (square.diagonal() <= NOTHING * trace**2) | np.array([*map(bool, self.reasons)])
        square = (square + square.T) / 2
        square[nothing, :] = square[:, nothing] = np.nan
        return np.asarray(square * np.outer(self.scale, self.scale) / norm)
