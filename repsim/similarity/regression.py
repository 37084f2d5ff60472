"""Linear regression: how much of one representation a linear map of the other predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.similarity.canonical import POOL, basis_of, full_rank
from repsim.similarity.declaration import RIGID, Declaration, Invariance
from repsim.similarity.exact import exact_gram, exact_rows, recentred
from repsim.similarity.prepared import CONSTANT, PreparedMeasure, Undefined, is_constant
from repsim.similarity.representation import Representation


@dataclass(frozen=True)
class Sides:
    """A representation as what is predicted and as what predicts.

    Attributes:
        kernel: (n, n) its Gram matrix, trace 1.
        vectors: (n, rank) a basis of what it spans, or why it predicts nothing.
    """

    kernel: Tensor
    vectors: Tensor | Undefined


@dataclass(frozen=True)
class LinearRegression(PreparedMeasure[tuple[Tensor, Tensor | Undefined], Sides]):
    """R² of X predicted from Y by least squares, 1 - min_B |X - Y B|²/|X|² = |Q_yᵀX|²/|X|².

    X is a row of a matrix and Y a column: a value is the part of the row's variance that the
    column's features predict. Independent Y of rank q predict q/(n - 1) of it.
    """

    word = "linear-regression"
    declaration = Declaration(
        "more alike", 0, 1, False, RIGID | {Invariance.LINEAR_Y}, "activations",
        "n²·p + n·q² + n²·q",
        "Kornblith et al. 2019, arXiv 1905.00414, table 1",
    )  # fmt: skip

    def fetch(self, one: Representation, device: torch.device) -> tuple[Tensor, Tensor | Undefined]:
        """Gram matrix, and activations where they can predict."""
        lack = full_rank(one.samples, one.features, "features", POOL)
        return exact_gram(one, device), lack or exact_rows(one, device)

    def prepare(
        self, source: tuple[Tensor, Tensor | Undefined], stay: Tensor | None, samples: int
    ) -> Sides | Undefined:
        """Both sides of the samples that stay."""
        kernel, values = source
        if stay is not None:
            kernel = recentred(kernel[stay][:, stay])
        if is_constant(kernel, source[0]):
            return Undefined(CONSTANT)
        vectors: Tensor | Undefined
        if isinstance(values, Undefined):
            vectors = values
        elif lack := full_rank(samples, values.shape[1], "features", ""):
            vectors = lack
        else:
            found = basis_of(values if stay is None else values[stay])
            vectors = found if isinstance(found, Undefined) else found.vectors
        return Sides(kernel / kernel.diagonal().sum(), vectors)

    def room(self, samples: int, features: int) -> int:
        """Gram matrices, activations and basis."""
        return 16 * samples * (samples + min(features, samples))

    def lack(self, state: Sides) -> Undefined | None:
        """As what predicts."""
        if isinstance(state.vectors, Undefined):
            return Undefined(f"where it is a column: {state.vectors.reason}", state.vectors.refused)
        return None

    def between(self, x: Sides, y: Sides) -> float:
        """tr(Qᵀ K Q)."""
        if isinstance(y.vectors, Undefined):
            return float("nan")
        return float((y.vectors * (x.kernel @ y.vectors)).sum())


def linear_regression(X: Any, Y: Any) -> float:
    """R² of X predicted linearly from Y; see `LinearRegression`.

    Args:
        X: (samples, features...) numpy or torch: what is predicted.
        Y: (samples, other features...): what predicts; fewer features than samples - 1.

    Returns:
        In [0, 1]; nan if one does not vary.

    Raises:
        UserError: numbers of samples that differ or are too small, NaN or infinity.
    """
    return LinearRegression()(X, Y)
