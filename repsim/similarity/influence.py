"""How much a similarity hangs on single images: its value without each of them.

With the U-centred K, L (zero diagonal, rows that sum to 0) and a_i = Σ_j k_ij·l_ij, the debiased
HSIC of the n - 1 other samples is

    [Σ_ij k_ij·l_ij - 2·a_i·(n - 2)/(n - 3)] / ((n - 1)(n - 4)),

since leaving out i changes the row sums to -k_ij, whose products add up to a_i. With H·K·H, H·L·H
the biased one is, m = n - 1,

    [Σ_ij k_ij·l_ij - 2·a_i + k_ii·l_ii - 2/m·(a_i - k_ii·l_ii) + k_ii·l_ii/m²] / (m - 1)².

So one row-wise product of two Gram matrices holds all n values, but of an image that makes nearly
all of a sum: its value is the difference of large numbers, and is computed anew.
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
    centre,
    centred_kernels,
    check_memory,
    gram_bytes,
    weight,
)

MOST = 1e-3  # what is left of a square without an image below which it is computed anew
ROUNDING = 1e-13  # of a matrix, by centring it in float64


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
    Costs the Gram matrices in float64 and three row-wise products for each pair.

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
    largest = 8 * max(map(len, strata)) ** 2
    check_memory(4 * gram_bytes(strata) + 3 * largest, memory, "influence", samples, 2)
    value = np.zeros(len(rows))
    without = np.zeros((samples, len(rows)))
    for layer, (x, y) in enumerate(zip(rows, columns, strict=True)):
        K, L = (
            centred_kernels(
                one, strata, estimator=estimator, kernel=kernel, memory=memory, exact=True
            ).values
            for one in (x, y)
        )
        whole = np.zeros((3, len(strata)))  # of K with L, K with K, L with L
        less = np.full((3, samples), np.nan)
        for number, (k, l, here) in enumerate(zip(K, L, strata, strict=True)):  # noqa: E741
            square, rest = _without(k, l, estimator)
            whole[:, number] = weight(len(here), estimator) * square
            less[:, here] = weight(len(here) - 1, estimator) * rest
        for number, here in enumerate(strata):  # no difference of sums: an image may be nearly all
            less[:, here] += np.delete(whole, number, 1).sum(1)[:, None]
        value[layer] = _cka(whole.sum(1))
        without[:, layer] = _cka(less)
        elsewhere = np.setdiff1d(np.arange(samples), np.concatenate(strata))
        without[elsewhere, layer] = value[layer]
        if progress:
            progress(layer + 1, len(rows))
    return Influence(value, without)


def _cka(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, ...) sums of K with L, K with K and L with L to CKA; nan where one does not vary."""
    defined = (sums[1] > 0) & (sums[2] > 0)
    norm = np.sqrt(np.where(defined, sums[1], 1)) * np.sqrt(np.where(defined, sums[2], 1))
    return np.asarray(np.where(defined, sums[0] / norm, np.nan))


def _without(
    k: Tensor,
    l: Tensor,  # noqa: E741
    estimator: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """⟨K, L⟩, ⟨K, K⟩ and ⟨L, L⟩ of one stratum, (3,), and the same without each image, (3, n).

    By the formulas above; of an image that makes nearly all of a square, which would be lost in
    the difference, from the matrices without it, centred again.
    """
    n = len(k)
    both = ((k, l), (k, k), (l, l))
    each = np.stack([(a * b).sum(1).numpy() for a, b in both])
    square = each.sum(1)
    if estimator == "biased":
        m = n - 1
        own = np.stack([(a.diagonal() * b.diagonal()).numpy() for a, b in both])
        rest = square[:, None] - 2 * each + own - 2 / m * (each - own) + own / m**2
    else:
        rest = square[:, None] - 2 * each * (n - 2) / (n - 3)
    lost = (rest[1:] < MOST * square[1:, None]).any(0)
    for image in np.flatnonzero(lost):
        stay = torch.from_numpy(np.delete(np.arange(n), image))
        x, y = (_recentred(matrix[stay][:, stay], estimator) for matrix in (k, l))
        rest[:, image] = [float((a * b).sum()) for a, b in ((x, y), (x, x), (y, y))]
    return square, rest


def _recentred(kernel: Tensor, estimator: str) -> Tensor:
    """Centred over fewer images; zeros where that leaves rounding only."""
    before = torch.linalg.vector_norm(kernel)
    centre(kernel, zero_diagonal=estimator != "biased")
    return kernel if bool(torch.linalg.vector_norm(kernel) > ROUNDING * before) else kernel.zero_()
