"""Orthogonal Procrustes: what is left between two shapes after the best rotation.

With both centred and of Frobenius norm 1, max over orthogonal Q of ⟨X, Y Q⟩ is the nuclear norm
s = |XᵀY|_* = tr((K^½ L K^½)^½), which Gram matrices have. Both forms are metrics on shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.similarity.declaration import RIGID, Declaration
from repsim.similarity.exact import nuclear_norm
from repsim.similarity.prepared import GramMeasure


def factor(kernel: Tensor) -> Tensor:
    """F (n, rank) with F Fᵀ = K: activations in their own principal axes.

    The rank is at most the smaller of samples - 1 and features: the side on which products of
    factors are small.
    """
    sizes, vectors = torch.linalg.eigh(kernel)
    real = sizes > sizes[-1] * len(sizes) * torch.finfo(sizes.dtype).eps
    return vectors[:, real] * sizes[real].sqrt()


class _Procrustes(GramMeasure[Tensor]):
    def of_gram(self, kernel: Tensor) -> Tensor:
        """A factor of norm 1."""
        found = factor(kernel)
        return found / torch.linalg.vector_norm(found)

    def nuclear(self, x: Tensor, y: Tensor) -> float:
        """|XᵀY|_* ≤ 1, of factors of norm 1; above 1 by rounding only."""
        return min(nuclear_norm(x.T @ y), 1.0)


@dataclass(frozen=True)
class Procrustes(_Procrustes):
    """Normalised Procrustes distance min_Q |X - Y Q|_F = √(2 - 2s); to some 1e-8 near 0."""

    word = "procrustes"
    declaration = Declaration(
        "less alike", 0, math.sqrt(2), True, RIGID, "gram", "n³ + n·r² + r³",
        "Schönemann 1966; Ding et al. 2021, arXiv 2108.01661; Williams et al. 2021, "
        "arXiv 2110.14739",
    )  # fmt: skip

    def between(self, x: Tensor, y: Tensor) -> float:
        """See the class."""
        return math.sqrt(2 - 2 * self.nuclear(x, y))


@dataclass(frozen=True)
class AngularProcrustes(_Procrustes):
    """Procrustes as an angle, arccos s in radians; to some 1e-8 near 0."""

    word = "angular-procrustes"
    declaration = Declaration(
        "less alike", 0, math.pi / 2, True, RIGID, "gram", "n³ + n·r² + r³",
        "Williams et al. 2021, arXiv 2110.14739",
    )  # fmt: skip

    def between(self, x: Tensor, y: Tensor) -> float:
        """See the class."""
        return math.acos(self.nuclear(x, y))


def procrustes(X: Any, Y: Any) -> float:
    """Normalised orthogonal Procrustes distance √(2 - 2·|XᵀY|_*/(|X|·|Y|)); see `Procrustes`.

    Args:
        X: (samples, features...) numpy or torch; centred here.
        Y: (samples, other features...), the same samples in the same order.

    Returns:
        In [0, √2], 0 for the same shape; nan if one does not vary.

    Raises:
        UserError: numbers of samples that differ or are below 3, NaN or infinity.
    """
    return Procrustes()(X, Y)


def angular_procrustes(X: Any, Y: Any) -> float:
    """arccos(|XᵀY|_*/(|X|·|Y|)) in [0, π/2]; arguments and errors as in `procrustes`."""
    return AngularProcrustes()(X, Y)
