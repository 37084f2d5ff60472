"""Canonical correlations: how far the subspaces that two representations span agree.

With Q_x and Q_y orthonormal bases of the centred activations, the canonical correlations
ρ_1 ≥ ρ_2 ≥ ... are the singular values of Q_xᵀQ_y, min(rank X, rank Y) of them.

Representations of independent noise have a mean ρ² of max(p, q)/(n - 1): take many more samples
than features. As soon as rank X + rank Y > n - 1, some correlations are 1 whatever the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.declaration import RIGID, Declaration, Invariance
from repsim.similarity.exact import centred, exact_rows, nuclear_norm, rank_floor
from repsim.similarity.prepared import CONSTANT, GramMeasure, PreparedMeasure, Undefined
from repsim.similarity.representation import Representation

# What to do about too many features.
POOL = "use more samples, or extract --reduce avgpool"
LINEAR = RIGID | {Invariance.LINEAR, Invariance.LINEAR_Y}


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of what centred activations span.

    Attributes:
        vectors: (n, rank) float64.
        weights: (rank, features) the activations in this basis, Qᵀ X.
        cut: directions that were wanted are lost in rounding.
    """

    vectors: Tensor
    weights: Tensor
    cut: bool = False

    @property
    def rank(self) -> int:
        """Dimensions."""
        return int(self.vectors.shape[1])


def full_rank(samples: int, count: int, what: str, instead: str) -> Undefined | None:
    """What is wrong with dimensions that span all that so many samples have."""
    if count < samples - 1:
        return None
    return Undefined(
        f"expected fewer {what} than the {samples} samples - 1, as any data fit others perfectly; "
        f"{instead}",
        refused=True,
    )


def basis_of(activations: Tensor) -> Basis | Undefined:
    """From activations (n, p); their columns are brought to one size, which spans the same.

    Directions below n·ε of the largest are rounding and are left out: constant, repeated and
    linearly dependent features.
    """
    values = centred(activations)
    norms = torch.linalg.vector_norm(values, dim=0)
    if not bool((norms > 0).any()):
        return Undefined(CONSTANT)
    scaled = values[:, norms > 0] / norms[norms > 0]
    left, sizes, _ = torch.linalg.svd(scaled, full_matrices=False)
    floor = sizes[0] * max(values.shape) * torch.finfo(values.dtype).eps
    vectors = left[:, sizes > floor]
    return Basis(vectors, vectors.T @ values)


def dependent(x: Basis, y: Basis, samples: int) -> str:
    """What to say where some correlations are 1 by counting alone."""
    if x.rank + y.rank <= samples - 1:
        return ""
    return (
        f"together more dimensions than the {samples} samples have, so that some correlations are "
        "1 by construction; take more samples or keep less variance"
    )


class _FromActivations(PreparedMeasure[Tensor | Undefined, Basis]):
    """The smallest directions count as much as the largest: a Gram matrix has lost them."""

    def fetch(self, one: Representation, device: torch.device) -> Tensor | Undefined:
        """Activations, which are not read where there are too many features."""
        lack = full_rank(
            one.samples, one.features, "features", f"{POOL}, or svcca, which reduces them"
        )
        return lack or exact_rows(one, device)

    def prepare(
        self, source: Tensor | Undefined, stay: Tensor | None, samples: int
    ) -> Basis | Undefined:
        """A basis of the samples that stay."""
        if isinstance(source, Undefined):
            return source
        if lack := full_rank(samples, source.shape[1], "features", ""):
            return lack
        return basis_of(source if stay is None else source[stay])

    def room(self, samples: int, features: int) -> int:
        """Activations and basis."""
        return 32 * samples * min(features, samples)

    def caution(self, x: Basis, y: Basis, samples: int) -> str:
        """Correlations that are 1 by construction."""
        return dependent(x, y, samples)


_COST = "n·p² + n·p·q"


@dataclass(frozen=True)
class CCA(_FromActivations):
    """Mean canonical correlation, 1/r·Σ ρ_i with r = min(rank X, rank Y)."""

    word = "cca"
    declaration = Declaration(
        "more alike", 0, 1, True, LINEAR, "activations", _COST,
        "Hotelling 1936; Raghu et al. 2017, arXiv 1706.05806, section 2",
    )  # fmt: skip

    def between(self, x: Basis, y: Basis) -> float:
        """See the class."""
        return nuclear_norm(x.vectors.T @ y.vectors) / min(x.rank, y.rank)


@dataclass(frozen=True)
class CCAR2(_FromActivations):
    """Mean squared canonical correlation R²_CCA, |Q_xᵀQ_y|²/r with r = min(rank X, rank Y)."""

    word = "cca-r2"
    declaration = Declaration(
        "more alike", 0, 1, True, LINEAR, "activations", _COST,
        "Kornblith et al. 2019, arXiv 1905.00414, table 1",
    )  # fmt: skip

    def between(self, x: Basis, y: Basis) -> float:
        """See the class."""
        return float((x.vectors.T @ y.vectors).square().sum() / min(x.rank, y.rank))


@dataclass(frozen=True)
class PWCCA(_FromActivations):
    """Mean canonical correlation weighted by how much of X each variate accounts for.

    Σ α_i·ρ_i / Σ α_i, α_i = Σ_j |⟨h_i, x_j⟩| with h_i the canonical variates of X and x_j its
    features. X makes the weights: the rows of a matrix.
    """

    word = "pwcca"
    declaration = Declaration(
        "more alike", 0, 1, False,
        frozenset({
            Invariance.SCALING, Invariance.TRANSLATION, Invariance.FEATURES,
            Invariance.FEATURES_BOTH, Invariance.SAMPLES, Invariance.LINEAR_Y,
        }),
        "activations", "n·p² + (n + p)·p·q",
        "Morcos et al. 2018, arXiv 1806.05759, section 2.1",
    )  # fmt: skip

    def between(self, x: Basis, y: Basis) -> float:
        """See the class."""
        left, correlations, _ = torch.linalg.svd(x.vectors.T @ y.vectors, full_matrices=False)
        weights = (left.T @ x.weights).abs().sum(1)
        return float((weights * correlations).sum() / weights.sum())


@dataclass(frozen=True)
class SVCCA(GramMeasure[Basis]):
    """Mean canonical correlation of the leading principal components of both.

    Of each representation as many components are kept as have `variance` of its variance together.

    Attributes:
        variance: the part to keep, above 0 and at most 1.
    """

    variance: float = 0.99

    word = "svcca"
    declaration = Declaration(
        "more alike", 0, 1, True, RIGID, "gram", "n³ + n·r²",
        "Raghu et al. 2017, arXiv 1706.05806, section 2.1",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise UserError(
                f"svcca's variance expects a number above 0 and at most 1; got {self.variance:g}"
            )

    def of_gram(self, kernel: Tensor, coarse: bool) -> Basis | Undefined:
        """The leading eigenvectors."""
        sizes, vectors = torch.linalg.eigh(kernel)
        sizes, vectors = sizes.flip(0), vectors.flip(1)
        real = int((sizes > rank_floor(sizes, coarse)).sum())
        share = sizes.cumsum(0) / sizes.sum()
        wanted = int((share < self.variance).sum()) + 1
        keep = min(wanted, real)
        instead = "keep less variance, such as svcca,variance=0.9, or use more"
        if lack := full_rank(len(kernel), keep, "components", instead):
            return lack
        kept = vectors[:, :keep].contiguous()
        return Basis(kept, torch.empty(0), cut=coarse and wanted > real)

    def remark(self, state: Basis) -> str:
        """Directions that float32 has lost."""
        if not state.cut:
            return ""
        return (
            f"its inner products are float32 and hold {state.rank} directions; what "
            f"variance={self.variance:g} asks for beyond them is rounding and is left out"
        )

    def between(self, x: Basis, y: Basis) -> float:
        """See the class."""
        return nuclear_norm(x.vectors.T @ y.vectors) / min(x.rank, y.rank)

    def caution(self, x: Basis, y: Basis, samples: int) -> str:
        """Correlations that are 1 by construction."""
        return dependent(x, y, samples)


def cca(X: Any, Y: Any) -> float:
    """Mean canonical correlation; see `CCA`.

    Args:
        X: (samples, features...) numpy or torch, fewer features than samples - 1.
        Y: (samples, other features...), the same samples in the same order.

    Returns:
        In [0, 1]; nan if one does not vary.

    Raises:
        UserError: numbers of samples that differ, too few samples, NaN or infinity.
    """
    return CCA()(X, Y)


def cca_r2(X: Any, Y: Any) -> float:
    """Mean squared canonical correlation; see `CCAR2`; arguments and errors as in `cca`."""
    return CCAR2()(X, Y)


def pwcca(X: Any, Y: Any) -> float:
    """Projection-weighted CCA, weights from X; see `PWCCA`; arguments and errors as in `cca`."""
    return PWCCA()(X, Y)


def svcca(X: Any, Y: Any, *, variance: float = 0.99) -> float:
    """Mean canonical correlation of leading principal components; see `SVCCA`.

    Args:
        X: (samples, features...) numpy or torch.
        Y: (samples, other features...), the same samples in the same order.
        variance: part of the variance of each that is kept.

    Returns:
        In [0, 1]; nan if one does not vary.

    Raises:
        UserError: numbers of samples that differ, too few samples for the components that have
            the variance, NaN or infinity.
    """
    return SVCCA(variance)(X, Y)
