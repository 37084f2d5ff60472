"""Minibatch HSIC and CKA from the Gram matrices of each batch (Nguyen et al. 2021, section 3).

The Gram matrix of a batch is symmetric and kept *packed*: its upper triangle with the diagonal,
row by row, m(m+1)/2 numbers. The packed matrices of all representations are the rows of V, and
one product V·Vᵀ holds the HSIC of every pair.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.similarity.halves import half_product, mirrored
from repsim.similarity.kernels import SAME_FLOAT32
from repsim.similarity.sums import NOTHING

_COLUMNS = 1 << 14  # of V that are U-centred and multiplied at once


@lru_cache(maxsize=8)
def _triangle(samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the packed entries."""
    rows, columns = torch.triu_indices(samples, samples, device=device)
    return rows, columns


def pack(kernel: Tensor) -> Tensor:
    """(m, m) symmetric to (m(m+1)/2,)."""
    rows, columns = _triangle(len(kernel), kernel.device)
    return kernel.reshape(-1)[rows * len(kernel) + columns]


def unpack(packed: Tensor, samples: int) -> Tensor:
    """(..., m(m+1)/2) to (..., m, m)."""
    rows, columns = _triangle(samples, packed.device)
    kernel = packed.new_empty((*packed.shape[:-1], samples, samples))
    kernel[..., rows, columns] = packed
    kernel[..., columns, rows] = packed
    return kernel


@torch.no_grad()
def batch_hsic(packed: Tensor, samples: int) -> Tensor:
    """Debiased HSIC of every pair of R representations of one batch, (R, R) float64.

    Definition at `repsim.similarity.sums.Sums.hsic`.

    Args:
        packed: (R, m(m+1)/2) float32 Gram matrices of centred activations, m ≥ 4.
        samples: m.

    Returns:
        Zeros in the row and the column of a representation that does not vary in this batch.
    """
    count, device = len(packed), packed.device
    rows, columns = _triangle(samples, device)
    diagonal = packed[:, rows == columns].double()
    trace = diagonal.sum(1)
    scale = torch.where(trace > 0, trace / samples, 1.0)
    # The centred matrix's rows sum to 0, so those without the diagonal to -k_ii: U-centring is
    # known before any sum is taken (Székely and Rizzo 2014).
    inner = samples - 2
    shift = diagonal / scale[:, None] / inner
    shift -= (trace / scale)[:, None] / (2 * (samples - 1) * inner)
    moved, unit = shift.float(), (1 / scale).float()[:, None]
    off = torch.nonzero(rows < columns)[:, 0]
    products = torch.zeros(count, count, dtype=torch.float64, device=device)
    share = torch.zeros(count, count, device=device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for part in off.split(_COLUMNS):
            values = packed[:, part] * unit
            values += moved[:, rows[part]]
            values += moved[:, columns[part]]
            half_product(values, share)
            products += share
    finally:
        torch.set_float32_matmul_precision(before)
    products = 2 * mirrored(products)
    nothing = products.diagonal() <= NOTHING * (trace / scale) ** 2
    products[nothing, :] = products[:, nothing] = 0
    return products * scale[:, None] * scale / (samples * (samples - 3))


@torch.no_grad()
def rbf(packed: Tensor, samples: int, fraction: float) -> Tensor:
    """RBF kernels from linear ones: exp(-d²/(2σ²)), σ = fraction × the batch's median distance.

    Args:
        packed: (R, m(m+1)/2) inner products.
        samples: m.
        fraction: of the median distance between different samples.

    Returns:
        (R, m(m+1)/2) float32, centred; zeros where the median distance is 0. Distances that are
        no more than rounding are 0.
    """
    rows, columns = _triangle(samples, packed.device)
    found = torch.empty_like(packed)
    for place, kernel in enumerate(packed):
        diagonal = kernel[rows == columns].double()
        both = diagonal[rows] + diagonal[columns]
        squares = both - 2 * kernel.double()
        squares.masked_fill_(squares <= SAME_FLOAT32 * both, 0)
        distances = squares[rows < columns].sqrt()
        ordered = distances.sort().values
        middle = len(ordered) // 2
        median = (ordered[middle] + ordered[(len(ordered) - 1) // 2]) / 2
        whole = unpack(torch.exp(-squares / (2 * (fraction * median) ** 2)), samples)
        means = whole.mean(1)
        whole -= means[:, None] + means - means.mean()
        found[place] = torch.where(median > 0, pack(whole.float()), 0.0)
    return found


class BatchSums:
    """Sums of the HSIC of batches, kept apart by jackknife group: batch b is in group b mod G.

    Args:
        count: number R of representations.
        batches: number of batches that will come in all.
        groups: jackknife groups asked for; as many as batches where those are fewer.
    """

    def __init__(self, count: int, batches: int, groups: int) -> None:
        self.batches = batches
        self.groups = min(groups, batches)
        self.sums = np.zeros((self.groups, count, count))
        self.sizes = np.bincount(np.arange(batches) % self.groups, minlength=self.groups)

    def add(self, batch: int, hsic: NDArray[np.float64]) -> None:
        """The HSIC (R, R) of batch number `batch`."""
        self.sums[batch % self.groups] += hsic

    def value(self) -> NDArray[np.float64]:
        """Mean over all batches, (R, R); nan for what varies in no batch."""
        return _defined(self.sums.sum(0) / self.batches)

    def replicates(self) -> NDArray[np.float64] | None:
        """The same without each group, (G, R, R); None where there is one group."""
        if self.groups < 2:
            return None
        whole = self.sums.sum(0)
        return np.stack(
            [
                _defined((whole - self.sums[group]) / (self.batches - self.sizes[group]))
                for group in range(self.groups)
            ]
        )


def _defined(hsic: NDArray[np.float64]) -> NDArray[np.float64]:
    nothing = hsic.diagonal() <= 0
    hsic[nothing, :] = hsic[:, nothing] = np.nan
    return hsic
