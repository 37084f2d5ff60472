"""The permutation null of CKA, all cells at once.

Which image a row of one side belongs to is drawn anew: rows and columns of its kernel matrices are
permuted alike, the other side stays. What is left of the similarity is chance. All matrices of a
side get the same permutation, so the largest cell of each draw is the null of a search over cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.estimate import MEMORY
from repsim.similarity.gram import Progress, full_float32
from repsim.similarity.representation import Representation, same_samples
from repsim.similarity.strata import (
    Strata,
    centred_kernels,
    check_memory,
    gram_bytes,
    weight,
)

LEVEL = 0.05
LEAST = math.ceil(1 / LEVEL) - 1  # permutations for which p can be as small as the level
# Bytes of permuted matrices that are multiplied at once: a processor's cache; many a kernel.
_STRIP, _STRIP_CUDA = 2**20, 2**26


@dataclass(frozen=True)
class Null:
    """What chance gives, for X rows and Y columns.

    Attributes:
        value: (X, Y) the similarity itself, as in `cka_pairs`.
        p: (X, Y) (1 + number of permuted values ≥ the value)/(1 + N); one-sided, never 0 (Phipson
            and Smyth 2010). nan where a representation does not vary.
        null_95: (X, Y) the value above which p ≤ .05: the floor(.05·(N + 1))-th largest permuted.
        null_95_max: the same of the largest cell: of a matrix without any similarity, one cell or
            more lies above it with probability .05.
    """

    value: NDArray[np.float64]
    p: NDArray[np.float64]
    null_95: NDArray[np.float64]
    null_95_max: float


def permutation_null(
    rows: Sequence[Representation],
    columns: Sequence[Representation],
    *,
    permutations: int,
    seed: int = 0,
    strata: Strata | None = None,
    estimator: str = "debiased",
    kernel: str = "linear",
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Null:
    """Null of the CKA of every row's representation with every column's; `Σ ⟨K, P·L·Pᵀ⟩`.

    The denominator √(HSIC(K, K)·HSIC(L, L)) does not change with the order of the samples. Costs
    one matrix product of (X, n²/2) and (n²/2, Y) a permutation.

    Args:
        rows: X representations.
        columns: Y representations of the same samples; theirs are permuted.
        permutations: N, at least 19.
        seed: of the draws; the same seed, samples and strata give the same permutations.
        strata: samples are permuted within each; see `strata_of`. All together by default.
        estimator: debiased, biased or minibatch; the strata have to be the batches then.
        kernel: as in `cka_pairs`.
        memory: bytes that the Gram matrices may take.
        device: where the products are made.
        progress: called with the permutations that are done and their number.

    Raises:
        UserError: too few permutations, more memory needed than allowed, differing samples,
            activations that are not finite.
    """
    check_permutations(permutations)
    rows, columns = list(rows), list(columns)
    samples = same_samples([*rows, *columns])
    strata = [np.arange(samples)] if strata is None else strata
    cells = len(rows) * len(columns)
    # Of the rows, whole matrices while half ones are made of them.
    needed = gram_bytes(strata) * (3 * len(rows) // 2 + len(columns) + 2)
    needed += 4 * cells * (permutations + 1) + 2 * _STRIP
    check_memory(
        needed, memory, "a permutation null", sum(map(len, strata)), len(rows) + len(columns)
    )
    device = torch.device(device)

    def stacked(side: list[Representation]) -> list[Tensor]:
        """For each stratum (n_s, n_s, side)."""
        room = [torch.empty(len(s), len(s), len(side), device=device) for s in strata]
        for position, one in enumerate(side):
            found = centred_kernels(one, strata, estimator=estimator, kernel=kernel, memory=memory)
            for place, matrix in zip(room, found.values, strict=True):
                place[:, :, position] = matrix.to(device)
        return room

    found = np.zeros((permutations + 1, len(rows), len(columns)), dtype=np.float32)
    draws = np.random.default_rng(seed)
    with torch.inference_mode(), full_float32():
        fixed = [_Fixed(x, weight(len(x), estimator), len(columns)) for x in stacked(rows)]
        moved = stacked(columns)
        for draw in range(permutations + 1):
            total = torch.zeros(len(rows), len(columns), dtype=torch.float64, device=device)
            for left, right in zip(fixed, moved, strict=True):
                order = draws.permutation(len(right)) if draw else np.arange(len(right))
                total += left.products(right, torch.from_numpy(order).to(device))
            found[draw] = total.cpu().numpy()
            if progress and draw:
                progress(draw, permutations)
    value, null = found[0], found[1:]
    undefined = np.isnan(value)
    p = (1 + (null >= value).sum(0)) / (1 + permutations)
    p[undefined] = np.nan
    rank = math.floor(LEVEL * (permutations + 1))
    largest = np.where(undefined, -np.inf, null).reshape(permutations, -1).max(1)
    return Null(
        value=value.astype(np.float64),
        p=p,
        null_95=np.sort(null, axis=0)[-rank].astype(np.float64),
        null_95_max=float(np.sort(largest)[-rank]) if not undefined.all() else math.nan,
    )


def check_permutations(permutations: int) -> None:
    """Refuse a number with which nothing could be significant.

    Raises:
        UserError: fewer than 19.
    """
    if permutations < LEAST:
        raise UserError(
            f"--permutations expects at least {LEAST}, or p could not be .05; got {permutations}; "
            "999 are usual"
        )


class _Fixed:
    """The matrices of the side that stays, in one stratum: strips of rows from the diagonal on."""

    def __init__(self, matrices: Tensor, factor: float, others: int) -> None:
        n = len(matrices)
        bytes_at_once = _STRIP if matrices.device.type == "cpu" else _STRIP_CUDA
        height = max(1, min(n, bytes_at_once // (4 * n * others)))
        self.strips: list[tuple[int, int, Tensor]] = []
        for start in range(0, n, height):
            stop = min(start + height, n)
            strip = matrices[start:stop, start:].permute(2, 0, 1).contiguous()
            strip[:, :, : stop - start].triu_()
            strip[:, :, : stop - start].diagonal(dim1=1, dim2=2).mul_(0.5)
            self.strips.append((start, stop, strip.mul_(2 * factor).flatten(1)))
        self._room = matrices.new_empty(height * n, others)

    def products(self, matrices: Tensor, order: Tensor) -> Tensor:
        """factor·⟨K, P·L·Pᵀ⟩ of every pair, (X, Y) float64; L is (n, n, Y)."""
        flat = matrices.flatten(0, 1)
        total = torch.zeros(
            len(self.strips[0][2]), flat.shape[1], dtype=torch.float64, device=flat.device
        )
        for start, stop, strip in self.strips:
            cells = (order[start:stop, None] * len(order) + order[start:]).flatten()
            total += strip @ torch.index_select(flat, 0, cells, out=self._room[: len(cells)])
        return total
