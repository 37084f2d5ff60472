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
from repsim.similarity.grams import centred_gram
from repsim.similarity.kernels import MEDIAN_SAMPLES, Kernel
from repsim.similarity.representation import Representation
from repsim.similarity.subset import in_memory, subset
from repsim.similarity.sums import NOTHING

Strata = list[NDArray[np.int64]]

LEAST = {"debiased": 4, "minibatch": 4, "biased": 2}  # samples that HSIC needs


@dataclass(frozen=True)
class Kernels:
    """The centred kernel matrices of one representation, one a stratum.

    Debiased (and minibatch): U-centred, diagonal 0, so that HSIC_s = ⟨K, L⟩/(n_s(n_s - 3))
    (Székely and Rizzo 2014). Biased: H·K·H, HSIC_s = ⟨K, L⟩/(n_s - 1)². In units in which HSIC with
    itself is 1: then HSIC is CKA.

    Attributes:
        values: (n_s, n_s) float32 of each stratum.
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
) -> Kernels:
    """The kernel matrices of a representation; from its activations or its Gram matrix.

    Args:
        representation: of n samples.
        strata: ascending positions of the samples of each.
        estimator: debiased, biased or minibatch.
        kernel: linear, rbf or rbf:FRACTION of the stratum's median distance.
        memory: activations that need less are read once, not once a stratum.

    Raises:
        UserError: activations that are not finite.
    """
    whole, n = representation, representation.samples
    in_reach = 4 * n * representation.features <= memory
    if len(strata) > 1 and in_reach:
        whole = in_memory(whole)
    chosen = Kernel.of(kernel)
    values, square, trace = [], 0.0, 0.0
    for rows in strata:
        one = whole if len(rows) == n else subset(whole, rows)
        matrix = centred_gram(one)
        if chosen.bandwidth is not None:
            _rbf(matrix, chosen.bandwidth)
        factor = weight(len(rows), estimator)
        level = matrix.diagonal().double().sum() - matrix.sum(dtype=torch.float64) / len(rows)
        _centre(matrix, zero_diagonal=estimator != "biased")
        values.append(matrix)
        square += factor * float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
        trace += factor * float(level) ** 2
    defined = square > NOTHING * trace
    for matrix in values:
        matrix.div_(square**0.5) if defined else matrix.fill_(torch.nan)
    return Kernels(values, defined)


def _centre(kernel: Tensor, *, zero_diagonal: bool) -> None:
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


def _rbf(kernel: Tensor, fraction: float) -> None:
    """exp(-d²/(2σ²)), σ = fraction × the median distance, in place of inner products."""
    norms = kernel.diagonal().clone()
    kernel.mul_(-2).add_(norms[:, None]).add_(norms).clamp_(min=0)
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
