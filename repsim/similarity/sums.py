"""HSIC of all pairs, and of all pairs without a group of samples, from sums over Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# A U-centred Gram matrix whose squares are this small a part of Σ_{i≠j} k_ii·k_jj is rounding error
# of float32 products (a part of about 4e-15), not a representation. The sum leaves out i = j: of a
# layer that a few samples dominate, the products of these with the others are well known.
NOTHING = 1e-12
# The same for a trace, beside that of all samples, in float64.
GONE = 1e-13
# Float32 sums are content where what cancels in them is no larger than so many times the result,
# and where the squares are no less than this part of the mean squared diagonal.
CANCELS, BLURRED = 30.0, 2e-3
# Covariances are in float64, but hold the diagonal, which is subtracted.
CANCELS_COVARIANCE, BLURRED_COVARIANCE = 1e8, 1e-8


@dataclass(frozen=True)
class Sums:
    """What HSIC needs of R kernel matrices of n samples, for each of G groups.

    Kernels are in units of `scale` and up to a term u_i + u_j, which HSIC does not see.

    Attributes:
        products: (R, R) sum over i ≠ j of k_ij·l_ij.
        left: (G, R, R) the part of it with neither i nor j in the group.
        rows: (G, n, R) for each sample i the sum of k_ij over j ≠ i in the group.
        diagonal: (n, R) k_ii.
        group_of: (n,) the group of each sample.
        scale: (R,) what a kernel was divided by.
        form: "gram" or "covariance": how the products were made.
        exact: they were made in float64.
        coarse: (R,) of this one there are float32 inner products only.
        reasons: for each representation why it has no kernel; "" if it has one.
        doubts: (R,) its kernel itself is not as good as float32 numbers can be.
    """

    products: Array
    left: Array
    rows: Array
    diagonal: Array
    group_of: NDArray[np.int64]
    scale: Array
    form: str
    exact: bool
    coarse: NDArray[np.bool_]
    reasons: list[str]
    doubts: NDArray[np.bool_]
    _looks: dict[tuple[str, int | None], _Look] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def samples(self) -> int:
        """n."""
        return len(self.group_of)

    def hsic(self, estimator: str, *, without: int | None = None, scaled: bool = True) -> Array:
        """HSIC of every pair, (R, R) float64.

        Debiased, n ≥ 4 (Song et al. 2012, equation 5):
        [Σ_{i≠j} k_ij·l_ij + 1ᵀK̃1·1ᵀL̃1/((n-1)(n-2)) - 2/(n-2)·1ᵀK̃L̃1] / (n(n-3)).
        Biased (Gretton et al. 2005): tr(KHLH)/(n-1)².

        Args:
            estimator: "debiased" or "biased".
            without: a group whose samples are left out, as if they had never been there.
            scaled: False for kernels in units of `scale`, whatever the size of activations; CKA is
                the same.

        Returns:
            nan in the row and the column of a representation that does not vary, or (debiased) no
            more than u_i + u_j does, such as a layer that is active for one sample only.
        """
        products, rows, diagonal = self._parts(without)
        n = len(rows)
        if estimator == "biased":
            rows = rows + diagonal
            square = products + diagonal.T @ diagonal - 2 / n * (rows.T @ rows)
            square += np.outer(rows.sum(0), rows.sum(0)) / n**2
            norm = (n - 1) ** 2
        else:
            total = rows.sum(0)
            square = products - 2 / (n - 2) * (rows.T @ rows)
            square += np.outer(total, total) / ((n - 1) * (n - 2))
            norm = n * (n - 3)
        nothing = self._look(estimator, without).nothing
        square = (square + square.T) / 2
        square[nothing, :] = square[:, nothing] = np.nan
        return np.asarray(square * (np.outer(self.scale, self.scale) if scaled else 1) / norm)

    def unclear(self, estimator: str, *, replicates: bool) -> NDArray[np.bool_]:
        """(R,) of which representations too many digits are lost, and float64 would have them.

        Args:
            estimator: "debiased" or "biased".
            replicates: look at what each group leaves too.
        """
        if self.exact:
            return np.zeros(len(self.scale), dtype=np.bool_)
        gram, groups = self.form == "gram", range(len(self.left)) if replicates else ()
        limit = CANCELS if gram else CANCELS_COVARIANCE
        found = np.zeros(len(self.scale), dtype=np.bool_)
        known = self.coarse.copy()  # as well as can be
        for without in (None, *groups):
            look = self._look(estimator, without)
            if without is None:
                known |= look.nothing
            lost = limit * look.square < look.cancelled
            if estimator != "biased":  # whose squares hold the diagonal
                blurred = BLURRED / self.samples if gram else BLURRED_COVARIANCE
                lost |= look.square < blurred * look.own
            found |= lost
        return np.asarray((found & ~known) | self.doubts)

    def _parts(self, without: int | None) -> tuple[Array, Array, Array]:
        """Of the samples that stay: products (R, R), row sums and diagonal (n, R)."""
        if without is None:
            return self.products, self.rows.sum(0), self.diagonal
        stay = self.group_of != without
        others = np.arange(len(self.rows)) != without
        rows = np.tensordot(others.astype(np.float64), self.rows, 1)  # no difference of sums
        return self.left[without], rows[stay], self.diagonal[stay]

    def _look(self, estimator: str, without: int | None) -> _Look:
        """How much of each kernel there is, and what of it is rounding."""
        if (estimator, without) not in self._looks:
            self._looks[estimator, without] = self._looked(estimator, without)
        return self._looks[estimator, without]

    def _looked(self, estimator: str, without: int | None) -> _Look:
        products, rows, diagonal = self._parts(without)
        n, total, whole = len(rows), rows.sum(0), diagonal.sum(0)
        rows_rows, both, squares = (
            np.einsum("ir,ir->r", x, y)
            for x, y in ((rows, rows), (rows, diagonal), (diagonal, diagonal))
        )
        # Of the centred kernel k_ii is a·d_i + b·r_i + c, d the diagonal and r the row sums.
        a, b, c = 1 - 2 / n, -2 / n, (total + whole) / n**2
        trace = a * whole + b * total + n * c
        own = a**2 * squares + b**2 * rows_rows + 2 * a * b * both
        own += 2 * c * (a * whole + b * total) + n * c**2
        found = products.diagonal()
        if estimator == "biased":
            rows_rows = rows_rows + 2 * both + squares
            parts = rows_rows * 2 / n, (total + whole) ** 2 / n**2
            found = found + squares
            bulk = trace**2
        else:
            parts = rows_rows * 2 / (n - 2), total**2 / ((n - 1) * (n - 2))
            bulk = trace**2 - own
        square, cancelled = found - parts[0] + parts[1], found + parts[0] + parts[1]
        nothing = square <= NOTHING * np.where(self.coarse, np.maximum(bulk, cancelled), bulk)
        nothing |= np.array([*map(bool, self.reasons)], dtype=np.bool_)
        if without is not None:
            nothing |= trace <= GONE * self._look(estimator, None).trace
        return _Look(square, cancelled, own, trace, nothing)


@dataclass(frozen=True)
class _Look:
    """The kernels of some samples with themselves.

    Attributes:
        square: (R,) HSIC of each with itself, before it is divided by the number of samples.
        cancelled: (R,) size of the terms that it is a sum of.
        own: (R,) Σ k_ii² of the centred kernels.
        trace: (R,) Σ k_ii of these.
        nothing: (R,) no more than rounding.
    """

    square: Array
    cancelled: Array
    own: Array
    trace: Array
    nothing: NDArray[np.bool_]
