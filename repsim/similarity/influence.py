"""How much a similarity hangs on single images: its value without each of them.

With the U-centred K, L (zero diagonal, rows that sum to 0) and a_i = Σ_j k_ij·l_ij, the debiased
HSIC of the n - 1 other samples is

    [Σ_ij k_ij·l_ij - 2·a_i·(n - 2)/(n - 3)] / ((n - 1)(n - 4)),

since leaving out i changes the row sums to -k_ij, whose products add up to a_i. With H·K·H, H·L·H
the biased one is, m = n - 1,

    [Σ_ij k_ij·l_ij - 2·a_i + k_ii·l_ii - 2/m·(a_i - k_ii·l_ii) + k_ii·l_ii/m²] / (m - 1)².

So one row-wise product of two Gram matrices holds all n values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.estimate import MEMORY
from repsim.similarity.gram import Progress
from repsim.similarity.representation import Representation, same_samples
from repsim.similarity.strata import (
    LEAST,
    Strata,
    centred_kernels,
    check_memory,
    gram_bytes,
    weight,
)


@dataclass(frozen=True)
class Influence:
    """CKA of L pairs without each of n samples.

    Attributes:
        value: (L,) with all samples.
        without: (n, L) without each; the value itself where a sample is in no stratum.
    """

    value: NDArray[np.float64]
    without: NDArray[np.float64]

    @property
    def change(self) -> NDArray[np.float64]:
        """(n, L) the value without each sample, minus the value: above 0, it lowers the value."""
        return self.without - self.value


def influence(
    rows: Sequence[Representation],
    columns: Sequence[Representation],
    *,
    strata: Strata | None = None,
    estimator: str = "debiased",
    kernel: str = "linear",
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Influence:
    """The CKA of each row's representation with the column's beside it, without each sample.

    Exact: what CKA of the other samples alone would be (an RBF's bandwidth stays that of all).
    Costs the Gram matrices and three row-wise products for each pair.

    Args:
        rows: L representations.
        columns: L representations of the same samples.
        strata: as in `permutation_null`.
        estimator: debiased, biased or minibatch; the strata have to be the batches then.
        kernel: as in `cka_pairs`.
        memory: bytes that the Gram matrices of a pair may take.
        progress: called with the pairs that are done and their number.

    Raises:
        UserError: too few samples to leave one out, more memory needed than allowed, differing
            samples, activations that are not finite.
    """
    samples = same_samples([*rows, *columns])
    strata = [np.arange(samples)] if strata is None else strata
    if max(map(len, strata)) <= LEAST[estimator]:
        raise UserError(
            f"the influence of single images expects at least {LEAST[estimator] + 1}, so that the "
            f"{estimator} estimator is left enough; got {max(map(len, strata))}"
        )
    largest = 4 * max(map(len, strata)) ** 2
    check_memory(2 * gram_bytes(strata) + 3 * largest, memory, "influence", samples, 2)
    value = np.zeros(len(rows))
    without = np.zeros((samples, len(rows)))
    for layer, (x, y) in enumerate(zip(rows, columns, strict=True)):
        K, L = (
            centred_kernels(one, strata, estimator=estimator, kernel=kernel, memory=memory).values
            for one in (x, y)
        )
        sums = [_without(a, b, strata, estimator, samples) for a, b in ((K, L), (K, K), (L, L))]
        (xy, each_xy), (xx, each_xx), (yy, each_yy) = sums
        value[layer] = xy / np.sqrt(xx * yy)
        without[:, layer] = each_xy / np.sqrt(each_xx * each_yy)
        if progress:
            progress(layer + 1, len(rows))
    return Influence(value, without)


def _without(
    K: list[Tensor], L: list[Tensor], strata: Strata, estimator: str, samples: int
) -> tuple[float, NDArray[np.float64]]:
    """Σ n_s·HSIC_s, and (n,) the same without each sample."""
    total = 0.0
    change = np.zeros(samples)
    for k, l, rows in zip(K, L, strata, strict=True):  # noqa: E741
        n = len(rows)
        each = (k * l).sum(1, dtype=torch.float64).numpy()
        square = float(each.sum())
        if estimator == "biased":
            m = n - 1
            own = (k.diagonal().double() * l.diagonal().double()).numpy()
            rest = square - 2 * each + own - 2 / m * (each - own) + own / m**2
        else:
            rest = square - 2 * each * (n - 2) / (n - 3)
        here = weight(n, estimator) * square
        total += here
        change[rows] = weight(n - 1, estimator) * rest - here
    return total, total + change
