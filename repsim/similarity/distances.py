"""Distance correlation: dependence of any kind, from the Euclidean distances between samples."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.similarity.declaration import RIGID, Declaration
from repsim.similarity.dissimilarity import squared_distances
from repsim.similarity.exact import recentred
from repsim.similarity.prepared import GramMeasure, Undefined


class _OfDistances(GramMeasure[Tensor]):
    def of_gram(self, kernel: Tensor, coarse: bool) -> Tensor | Undefined:
        """The centred distances as a vector of length 1."""
        distances = squared_distances(kernel, coarse).sqrt()
        found = self.centre(distances).flatten()
        norm = torch.linalg.vector_norm(found)
        if not bool(norm > 1e-12 * torch.linalg.vector_norm(distances)):
            return Undefined("its distances have no variation that the estimator can see")
        return found / norm

    @abstractmethod
    def centre(self, distances: Tensor) -> Tensor:
        """(n, n) without row and column means."""


@dataclass(frozen=True)
class DistanceCorrelation(_OfDistances):
    """Distance correlation √(⟨A, B⟩/√(⟨A, A⟩·⟨B, B⟩)), A and B the doubly centred distances.

    Biased: of independent representations it is far above 0, near 1 with many features.
    """

    word = "distance-correlation"
    declaration = Declaration(
        "more alike", 0, 1, True, RIGID, "gram", "n²·p + n²",
        "Székely, Rizzo & Bakirov 2007, arXiv 0803.4101",
    )  # fmt: skip

    def centre(self, distances: Tensor) -> Tensor:
        """H·D·H."""
        return recentred(distances)

    def between(self, x: Tensor, y: Tensor) -> float:
        """See the class. The product is never negative but by rounding."""
        return math.sqrt(max(float(x @ y), 0.0))


@dataclass(frozen=True)
class DebiasedDistanceCorrelation(_OfDistances):
    """Bias-corrected squared distance correlation ⟨Ã, B̃⟩/√(⟨Ã, Ã⟩·⟨B̃, B̃⟩), U-centred distances.

    It estimates the square of the other, has mean near 0 for independent representations whatever
    their width, and can be below 0.
    """

    word = "distance-correlation-debiased"
    declaration = Declaration(
        "more alike", -1, 1, True, RIGID, "gram", "n²·p + n²",
        "Székely & Rizzo 2013, doi 10.1016/j.jmva.2013.02.012; 2014, arXiv 1310.2926",
    )  # fmt: skip

    def least(self) -> int:
        """U-centring divides by n - 3."""
        return 4

    def centre(self, distances: Tensor) -> Tensor:
        """d_ij - r_i/(n-2) - r_j/(n-2) + t/((n-1)(n-2)) with row sums r, total t; diagonal 0."""
        n = len(distances)
        rows = distances.sum(1)
        shift = (rows - rows.sum() / (2 * (n - 1))) / (n - 2)
        return (distances - (shift[:, None] + shift)).fill_diagonal_(0)

    def between(self, x: Tensor, y: Tensor) -> float:
        """See the class."""
        return float(x @ y)


def distance_correlation(X: Any, Y: Any, *, debiased: bool = False) -> float:
    """Distance correlation; see `DistanceCorrelation`.

    Args:
        X: (samples, features...) numpy or torch.
        Y: (samples, other features...), the same samples in the same order.
        debiased: the bias-corrected one, which estimates the square; see
            `DebiasedDistanceCorrelation`.

    Returns:
        In [0, 1], debiased in [-1, 1]; nan if one does not vary.

    Raises:
        UserError: numbers of samples that differ or are below 3 (debiased: 4), NaN or infinity.
    """
    return (DebiasedDistanceCorrelation() if debiased else DistanceCorrelation())(X, Y)
