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
from repsim.similarity.exact import nuclear_norm, rank_floor
from repsim.similarity.prepared import GramMeasure

TOLD = 3e-3  # of s; what smaller directions are worth goes unsaid


@dataclass(frozen=True)
class Shape:
    """Activations in their own principal axes.

    Attributes:
        factor: (n, rank) F with F Fᵀ = K/tr K.
        unsure: by how much s can be wrong at most for the directions that are lost in rounding.
    """

    factor: Tensor
    unsure: float


def shape_of(kernel: Tensor, coarse: bool) -> Shape:
    """From a centred Gram matrix (n, n); coarse: of float32 numbers.

    The rank is at most the smaller of samples - 1 and features: the side on which products of
    factors are small.
    """
    sizes, vectors = torch.linalg.eigh(kernel)
    real = sizes > rank_floor(sizes, coarse)
    factor = vectors[:, real] * sizes[real].sqrt()
    # |Eᵀ Y|_* ≤ |E|·|Y| of the part E that is left out.
    lost = float((sizes[~real].clamp(min=0).sum() / sizes.sum()).sqrt()) if coarse else 0.0
    return Shape(factor / torch.linalg.vector_norm(factor), lost)


class _Procrustes(GramMeasure[Shape]):
    def of_gram(self, kernel: Tensor, coarse: bool) -> Shape:
        """A factor of norm 1."""
        return shape_of(kernel, coarse)

    def nuclear(self, x: Shape, y: Shape) -> float:
        """|XᵀY|_* ≤ 1, of factors of norm 1; above 1 by rounding only."""
        return min(nuclear_norm(x.factor.T @ y.factor), 1.0)

    def remark(self, state: Shape) -> str:
        """Directions that float32 has lost."""
        if state.unsure <= TOLD:
            return ""
        return (
            "its inner products are float32, in which its smallest directions are rounding and are "
            f"left out; they change |XᵀY|_* by at most {state.unsure:.0e}; activations have them"
        )


@dataclass(frozen=True)
class Procrustes(_Procrustes):
    """Normalised Procrustes distance min_Q |X - Y Q|_F = √(2 - 2s); to some 1e-8 near 0."""

    word = "procrustes"
    declaration = Declaration(
        "less alike", 0, math.sqrt(2), True, RIGID, "gram", "n³ + n·r² + r³",
        "Schönemann 1966; Ding et al. 2021, arXiv 2108.01661; Williams et al. 2021, "
        "arXiv 2110.14739",
    )  # fmt: skip

    def between(self, x: Shape, y: Shape) -> float:
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

    def between(self, x: Shape, y: Shape) -> float:
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
