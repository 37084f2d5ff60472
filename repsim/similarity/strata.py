"""Samples in strata that are compared each by itself: all together, batches, or classes.

HSIC over strata s of n_s samples is Σ n_s·HSIC_s / Σ n_s, and CKA divides such sums last. With one
stratum it is the usual one, with batches of one size the minibatch form of Nguyen et al. 2021, and
with a stratum a class it is the similarity that is left within classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.estimate import BATCH_SIZE
from repsim.similarity.exact import exact_gram
from repsim.similarity.grams import GramRepresentation, centred_gram
from repsim.similarity.kernels import FAR, MEDIAN_SAMPLES, SAME, SAME_FLOAT32, Kernel
from repsim.similarity.representation import Representation
from repsim.similarity.subset import in_memory, subset
from repsim.similarity.sums import BLURRED, NOTHING

Strata = list[NDArray[np.int64]]

LEAST = {"debiased": 4, "minibatch": 4, "biased": 2}  # samples that HSIC needs


@dataclass(frozen=True)
class Kernels:
    """The centred kernel matrices of one representation, one a stratum.

    Debiased (and minibatch): U-centred, diagonal 0, so that HSIC_s = ⟨K, L⟩/(n_s(n_s - 3))
    (Székely and Rizzo 2014). Biased: H·K·H, HSIC_s = ⟨K, L⟩/(n_s - 1)². In units in which HSIC with
    itself is 1: then HSIC is CKA.

    Attributes:
        values: (n_s, n_s) of each stratum, float32 unless asked for in float64.
        defined: False where the representation does not vary; the values are nan then.
    """

    values: list[Tensor]
    defined: bool


def strata_of(
    samples: int,
    estimator: str,
    *,
    batch_size: int | None = None,
    labels: NDArray[np.int64] | None = None,
) -> Strata:
    """The strata that an estimator compares within.

    Args:
        samples: number of samples n.
        estimator: debiased, biased or minibatch.
        batch_size: of minibatch; as in `hsic_pairs`.
        labels: (n,) classes, for similarity within them; see `classes`.
    """
    if labels is not None:
        return classes(labels, LEAST[estimator])
    if estimator == "minibatch":
        size = batch_size or min(BATCH_SIZE, samples)
        return [np.arange(start, start + size) for start in range(0, samples - size + 1, size)]
    return [np.arange(samples)]


def classes(labels: NDArray[np.int64], least: int) -> Strata:
    """The samples of each class that has at least `least` of them.

    Raises:
        UserError: no class has.
    """
    every = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    found = [rows for rows in every if len(rows) >= least]
    if not found:
        raise UserError(
            f"within-class similarity expects a class of at least {least} images; the largest of "
            f"{len(every)} has {max(map(len, every), default=0)}; take more images"
        )
    return found


def weight(samples: int, estimator: str) -> float:
    """n_s/(n_s(n_s - 3)) or n_s/(n_s - 1)²: the factor of ⟨K, L⟩ in Σ n_s·HSIC_s; 0 if too few."""
    if samples < LEAST[estimator]:
        return 0.0
    return samples / ((samples - 1) ** 2 if estimator == "biased" else samples * (samples - 3))


def gram_bytes(strata: Strata) -> int:
    """Of the kernel matrices of one representation."""
    return 4 * sum(len(rows) ** 2 for rows in strata)


def centred_kernels(
    representation: Representation,
    strata: Strata,
    *,
    estimator: str,
    kernel: str = "linear",
    memory: int,
    exact: bool = False,
) -> Kernels:
    """The kernel matrices of a representation; from its activations or its Gram matrix.

    Made in float64 where a sample outweighs all others so far that float32 has lost them.

    Args:
        representation: of n samples.
        strata: ascending positions of the samples of each.
        estimator: debiased, biased or minibatch.
        kernel: linear, rbf or rbf:FRACTION of the stratum's median distance.
        memory: activations that need less are read once, not once a stratum.
        exact: the matrices are float64.

    Raises:
        UserError: activations that are not finite.
    """
    whole, n = representation, representation.samples
    in_reach = 4 * n * representation.features <= memory
    if len(strata) > 1 and in_reach:
        whole = in_memory(whole)
    parts = [whole if len(rows) == n else subset(whole, rows) for rows in strata]
    chosen = Kernel.of(kernel)
    found, clear = _kernels(parts, chosen, estimator, exact=exact)
    if not clear and not exact and not isinstance(representation, GramRepresentation):
        found, _ = _kernels(parts, chosen, estimator, exact=True)
        found = Kernels([matrix.float() for matrix in found.values], found.defined)
    return found


def _kernels(
    parts: list[Representation], chosen: Kernel, estimator: str, *, exact: bool
) -> tuple[Kernels, bool]:
    """See `centred_kernels`; and whether the matrices are as good as their type allows."""
    values, square, least, clear = [], 0.0, 0.0, True
    for one in parts:
        n, factor = one.samples, weight(one.samples, estimator)
        matrix = exact_gram(one, torch.device("cpu")) if exact else centred_gram(one)
        if chosen.bandwidth is not None:
            same = SAME if exact and not isinstance(one, GramRepresentation) else SAME_FLOAT32
            clear &= _rbf(matrix, chosen.bandwidth, same)
        rows = matrix.mean(1, dtype=torch.float64)
        own = matrix.diagonal().double() - 2 * rows + rows.mean()
        trace, squares = float(own.sum()), float(own.square().sum())
        centre(matrix, zero_diagonal=estimator != "biased")
        values.append(matrix)
        here = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
        square += factor * here
        least += factor * NOTHING * (trace**2 - (0 if estimator == "biased" else squares))
        if estimator != "biased":
            clear &= here >= BLURRED / n * squares
    defined = square > least
    for matrix in values:
        matrix.div_(square**0.5) if defined else matrix.fill_(torch.nan)
    return Kernels(values, defined), clear


def centre(kernel: Tensor, *, zero_diagonal: bool) -> None:
    """U-centring or H·K·H in place; sums in float64."""
    n = len(kernel)
    if zero_diagonal:
        kernel.fill_diagonal_(0)
        rows = kernel.sum(1, dtype=torch.float64) / (n - 2)
        rows -= rows.sum() / (2 * (n - 1))
    else:
        rows = kernel.mean(1, dtype=torch.float64)
        rows -= rows.mean() / 2
    kernel.sub_(rows[:, None]).sub_(rows)
    if zero_diagonal:
        kernel.fill_diagonal_(0)


def _rbf(kernel: Tensor, fraction: float, same: float) -> bool:
    """exp(-d²/(2σ²)), σ = fraction × the median distance, in place of inner products.

    Squared distances of no more than `same` of the squared norms are rounding, and 0.

    Returns:
        Whether the inner products were good enough; see `repsim.similarity.kernels.FAR`.
    """
    norms = kernel.diagonal().clone()
    both = norms[:, None] + norms
    kernel.mul_(-2).add_(both)
    kernel.masked_fill_(kernel <= same * both, 0)
    chosen = np.arange(len(kernel))
    if len(kernel) > MEDIAN_SAMPLES:  # the same draw as in `repsim.similarity.kernels`
        draw = np.random.default_rng(0)
        chosen = np.sort(draw.choice(len(kernel), MEDIAN_SAMPLES, replace=False))
    some = kernel[torch.from_numpy(chosen)][:, torch.from_numpy(chosen)].numpy()
    median = float(np.median(np.sqrt(some[np.triu_indices(len(chosen), 1)])))
    if median:
        kernel.mul_(-1 / (2 * (fraction * median) ** 2)).exp_()
    else:
        kernel.zero_()
    return float(norms.max()) <= FAR * median**2


def check_memory(needed: int, memory: int, what: str, samples: int, layers: int) -> None:
    """Refuse what would not fit.

    Raises:
        UserError: more bytes needed than may be used.
    """
    if needed > memory:
        raise UserError(
            f"{what} expects the Gram matrices of {layers} representations of {samples} images in "
            f"memory, {needed / 2**30:.1f} GiB; it may use {memory / 2**30:.1f} GiB; take fewer "
            "layers or images, or allow more memory"
        )
