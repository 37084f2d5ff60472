"""Representational similarity analysis: two matrices of dissimilarities between samples, compared.

The dissimilarities are those between different samples, n·(n-1)/2 of them, from the centred Gram
matrix: |x_i - x_j|² = k_ii + k_jj - 2·k_ij.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.declaration import RIGID, Declaration, Invariance
from repsim.similarity.exact import recentred
from repsim.similarity.prepared import GramMeasure, Undefined

METRICS = ("euclidean", "sqeuclidean", "cosine")
# Of the squared norms: the rounding error of a squared distance from a Gram matrix, and from one of
# float32 numbers; decimals of a cosine that are not rounding, likewise.
SAME, SAME_COARSE = 1e-13, 1e-6
DECIMALS, DECIMALS_COARSE = 12, 6
EQUAL = Undefined("all dissimilarities are equal")


def squared_distances(kernel: Tensor, coarse: bool = False) -> Tensor:
    """|x_i - x_j|², (n, n), of a Gram matrix; 0 where it is no more than rounding.

    Args:
        kernel: (n, n) float64, centred.
        coarse: of float32 numbers; see `repsim.similarity.prepared.Inner`.
    """
    norms = kernel.diagonal()
    both = norms[:, None] + norms
    found = both - 2 * kernel
    return found.masked_fill_(found <= (SAME_COARSE if coarse else SAME) * both, 0)


def with_ties(kernel: Tensor, coarse: bool = False) -> Tensor:
    """The Gram matrix with equal samples made exactly equal, so that their ties are ties."""
    first = (squared_distances(kernel, coarse) == 0).byte().argmax(1)
    return kernel[first][:, first]


def cosines(kernel: Tensor) -> Tensor:
    """Cosine of the angle between samples, seen from their mean; 0 of a sample at the mean."""
    norms = kernel.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    return kernel * inverse[:, None] * inverse


def rounded(cosine: Tensor, coarse: bool) -> Tensor:
    """Cosines to the decimals that are not rounding, so that ties are ties."""
    return cosine.round(decimals=DECIMALS_COARSE if coarse else DECIMALS)


def above_diagonal(matrix: Tensor) -> Tensor:
    """(n·(n-1)/2,)"""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return matrix[i, j]


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[place]


def unit(values: Tensor, size: Tensor) -> Tensor | Undefined:
    """Of length 1; nothing where that is rounding beside `size`."""
    norm = torch.linalg.vector_norm(values)
    return values / norm if bool(norm > 1e-12 * size) else EQUAL


class _RSA(GramMeasure[Tensor]):
    metric: str

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UserError(
                f"{self.word}'s metric expects one of {', '.join(METRICS)}; got {self.metric!r}"
            )

    def of_gram(self, kernel: Tensor, coarse: bool) -> Tensor | Undefined:
        """The dissimilarities as a vector of length 1."""
        kernel = with_ties(kernel, coarse)
        if self.metric == "cosine":
            found = 1 - rounded(cosines(recentred(kernel)), coarse)
        else:
            found = squared_distances(kernel, coarse)
            if self.metric == "euclidean":
                found = found.sqrt()
        return self.direction(above_diagonal(found))

    @abstractmethod
    def direction(self, values: Tensor) -> Tensor | Undefined:
        """What of the dissimilarities is compared, of length 1."""

    def between(self, x: Tensor, y: Tensor) -> float:
        """The cosine of the two vectors."""
        return float(x @ y)


_COST = "n²·p + n²"
_SOURCE = "Kriegeskorte et al. 2008, doi 10.3389/neuro.06.004.2008"


@dataclass(frozen=True)
class RSA(_RSA):
    """Pearson correlation of the dissimilarities.

    Attributes:
        metric: euclidean, sqeuclidean, or cosine (1 - cosine, of centred activations).
    """

    metric: str = "euclidean"

    word = "rsa"
    declaration = Declaration("more alike", -1, 1, True, RIGID, "gram", _COST, _SOURCE)

    def direction(self, values: Tensor) -> Tensor | Undefined:
        """Minus the mean."""
        return unit(values - values.mean(), torch.linalg.vector_norm(values))


@dataclass(frozen=True)
class RSASpearman(_RSA):
    """Spearman's rank correlation of the dissimilarities; ties share their mean rank.

    Attributes:
        metric: euclidean, sqeuclidean (the same), or cosine.
    """

    metric: str = "euclidean"

    word = "rsa-spearman"
    declaration = Declaration(
        "more alike", -1, 1, True, RIGID | {Invariance.DISTANCES}, "gram", "n²·p + n²·log n + n²",
        _SOURCE,
    )  # fmt: skip

    def direction(self, values: Tensor) -> Tensor | Undefined:
        """Ranks minus their mean."""
        ranks = average_ranks(values)
        return unit(ranks - ranks.mean(), torch.linalg.vector_norm(ranks))


@dataclass(frozen=True)
class RSACosine(_RSA):
    """Cosine of the dissimilarities: high for any two, as all are positive.

    Attributes:
        metric: euclidean, sqeuclidean, or cosine (1 - cosine, of centred activations).
    """

    metric: str = "euclidean"

    word = "rsa-cosine"
    declaration = Declaration("more alike", 0, 1, True, RIGID, "gram", _COST, _SOURCE)

    def direction(self, values: Tensor) -> Tensor | Undefined:
        """As they are."""
        return values / torch.linalg.vector_norm(values)


def rsa(X: Any, Y: Any, *, compare: str = "pearson", metric: str = "euclidean") -> float:
    """Representational similarity analysis; see `RSA`, `RSASpearman`, `RSACosine`.

    Args:
        X: (samples, features...) numpy or torch.
        Y: (samples, other features...), the same samples in the same order.
        compare: `pearson`, `spearman` or `cosine`: how the dissimilarities are compared.
        metric: `euclidean`, `sqeuclidean` or `cosine`: the dissimilarity of two samples.

    Returns:
        In [-1, 1], of `cosine` in [0, 1]; nan if one does not vary or all dissimilarities are
        equal.

    Raises:
        UserError: numbers of samples that differ or are below 3, NaN or infinity, another word.
    """
    ways = {"pearson": RSA(metric), "spearman": RSASpearman(metric), "cosine": RSACosine(metric)}
    if compare not in ways:
        raise UserError(f"compare expects one of {', '.join(ways)}; got {compare!r}")
    return ways[compare](X, Y)
