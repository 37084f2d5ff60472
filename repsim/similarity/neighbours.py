"""Nearest neighbours: whether samples that are close in one representation are in the other.

The neighbours of a sample are the k other ones of largest cosine, both seen from the mean of all
samples, or of smallest Euclidean distance. Of equally near samples the first ones are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.declaration import RIGID, Declaration
from repsim.similarity.dissimilarity import cosines, squared_distances, with_ties
from repsim.similarity.exact import recentred
from repsim.similarity.prepared import GramMeasure, Undefined

_SOURCE = "Huh et al. 2024, arXiv 2405.07987"


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of every sample.

    Attributes:
        nearest: (n, k) their positions, nearest first.
        among: (n, n) whether j is a neighbour of i.
        tied: samples of which the last neighbour is as near as one that is left out.
    """

    nearest: Tensor
    among: Tensor
    tied: int


def neighbours(nearness: Tensor, k: int) -> Neighbours:
    """Of a matrix (n, n) whose larger entries are nearer; the diagonal does not count."""
    nearness = nearness.clone().fill_diagonal_(-torch.inf)
    sizes, order = nearness.sort(dim=1, descending=True, stable=True)
    nearest = order[:, :k].contiguous()
    among = torch.zeros_like(nearness, dtype=torch.bool).scatter_(1, nearest, True)
    tied = int((sizes[:, k - 1] == sizes[:, k]).sum())
    return Neighbours(nearest, among, tied)


def shared(x: Neighbours, y: Neighbours) -> Tensor:
    """(n, k) which of x's neighbours are y's too."""
    return y.among.gather(1, x.nearest)


def tie_remark(tied: int, samples: int) -> str:
    """What to say of ties."""
    if not tied:
        return ""
    return (
        f"{tied} of {samples} samples whose last neighbour is as near as the next one (equal "
        "activations); the first in the order of the samples is taken, in every layer, which looks "
        "alike"
    )


def _check_k(word: str, k: int) -> None:
    if k < 1:
        raise UserError(f"{word}'s k expects at least 1 neighbour; got {k}")


class _OfSets(GramMeasure[Neighbours]):
    k: int
    metric: str

    def __post_init__(self) -> None:
        _check_k(self.word, self.k)
        if self.metric not in ("cosine", "euclidean"):
            raise UserError(
                f"{self.word}'s metric expects cosine or euclidean; got {self.metric!r}"
            )

    def least(self) -> int:
        """With k + 1 samples, all others are neighbours."""
        return self.k + 2

    def of_gram(self, kernel: Tensor) -> Neighbours:
        """The neighbours."""
        kernel = with_ties(kernel)
        if self.metric == "cosine":
            return neighbours(cosines(recentred(kernel)), self.k)
        return neighbours(-squared_distances(kernel), self.k)

    def remark(self, state: Neighbours) -> str:
        """Ties."""
        return tie_remark(state.tied, len(state.nearest))


@dataclass(frozen=True)
class MutualKNN(_OfSets):
    """Mean part of the k nearest neighbours that both share, 1/n·Σ_i |N_x(i) ∩ N_y(i)|/k.

    Unrelated representations share k/(n - 1).

    Attributes:
        k: neighbours of each sample.
        metric: cosine (of centred activations) or euclidean.
    """

    k: int = 10
    metric: str = "cosine"

    word = "mutual-knn"
    declaration = Declaration(
        "more alike", 0, 1, True, RIGID, "gram", "n²·p + n²·log n + n·k", _SOURCE
    )

    def between(self, x: Neighbours, y: Neighbours) -> float:
        """See the class."""
        return float(shared(x, y).double().mean())

    def about(self, samples: int) -> list[str]:
        """What chance gives."""
        return [f"{self.name}: unrelated representations share {self.k / (samples - 1):.3f}"]


@dataclass(frozen=True)
class Jaccard(_OfSets):
    """Mean Jaccard index of the neighbourhoods, 1/n·Σ_i |N_x(i) ∩ N_y(i)|/|N_x(i) ∪ N_y(i)|.

    Attributes:
        k: neighbours of each sample.
        metric: cosine (of centred activations) or euclidean.
    """

    k: int = 10
    metric: str = "cosine"

    word = "jaccard"
    declaration = Declaration(
        "more alike", 0, 1, True, RIGID, "gram", "n²·p + n²·log n + n·k",
        "Klabunde et al. 2023, arXiv 2305.06329",
    )  # fmt: skip

    def between(self, x: Neighbours, y: Neighbours) -> float:
        """See the class."""
        both = shared(x, y).sum(1).double()
        return float((both / (2 * self.k - both)).mean())


@dataclass(frozen=True)
class Local:
    """A kernel between neighbours only.

    Attributes:
        neighbours: of every sample.
        kernel: (n, n) centred, of all samples.
        values: (n, k) of the neighbours, scaled to squares that sum to 1.
        scale: what they were divided by.
    """

    neighbours: Neighbours
    kernel: Tensor
    values: Tensor
    scale: Tensor


@dataclass(frozen=True)
class CKNNA(GramMeasure[Local]):
    """CKA between mutual nearest neighbours only.

    A(K, L)/√(A(K, K)·A(L, L)) with A(K, L) = Σ k_ij·l_ij over the pairs of which j is among the k
    nearest neighbours of i in both, and K and L centred kernels: cosines of centred activations
    (Huh et al. normalise likewise, without centring first), centred again. k = n - 1 is CKA
    without its diagonal.

    Attributes:
        k: neighbours of each sample.
    """

    k: int = 10

    word = "cknna"
    declaration = Declaration(
        "more alike", -1, 1, True, RIGID, "gram", "n²·p + n²·log n + n·k", _SOURCE
    )

    def __post_init__(self) -> None:
        _check_k(self.word, self.k)

    def least(self) -> int:
        """With k + 1 samples, all others are neighbours."""
        return self.k + 2

    def of_gram(self, kernel: Tensor) -> Local | Undefined:
        """The kernel and its neighbours."""
        kernel = recentred(cosines(recentred(with_ties(kernel))))
        found = neighbours(kernel, self.k)
        values = kernel.gather(1, found.nearest)
        scale = torch.linalg.vector_norm(values)
        if not bool(scale > 0):
            return Undefined("its neighbours have kernel 0")
        return Local(found, kernel, values / scale, scale)

    def between(self, x: Local, y: Local) -> float:
        """See the class."""
        nearest = x.neighbours.nearest
        other = y.kernel.gather(1, nearest) * shared(x.neighbours, y.neighbours)
        return float((x.values * other).sum() / y.scale)

    def remark(self, state: Local) -> str:
        """Ties."""
        return tie_remark(state.neighbours.tied, len(state.values))


def mutual_knn(X: Any, Y: Any, *, k: int = 10, metric: str = "cosine") -> float:
    """Mean part of the k nearest neighbours that X and Y share; see `MutualKNN`.

    Args:
        X: (samples, features...) numpy or torch.
        Y: (samples, other features...), the same samples in the same order.
        k: neighbours of each sample, at most samples - 2.
        metric: `cosine`, of centred activations, or `euclidean`.

    Returns:
        In [0, 1], k/(samples - 1) for unrelated ones; nan if one does not vary.

    Raises:
        UserError: numbers of samples that differ or are below k + 2, NaN or infinity, another
            metric.
    """
    return MutualKNN(k, metric)(X, Y)


def jaccard(X: Any, Y: Any, *, k: int = 10, metric: str = "cosine") -> float:
    """Mean Jaccard index of neighbourhoods; see `Jaccard`; arguments as in `mutual_knn`."""
    return Jaccard(k, metric)(X, Y)


def cknna(X: Any, Y: Any, *, k: int = 10) -> float:
    """CKA between mutual nearest neighbours, in [-1, 1]; see `CKNNA` and `mutual_knn`."""
    return CKNNA(k)(X, Y)
