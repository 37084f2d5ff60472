"""Nearest neighbours: whether samples that are close in one representation are in the other.

The neighbours of a sample are the k other ones of largest cosine, both seen from the mean of all
samples, or of smallest Euclidean distance. Of equally near samples the first ones are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.declaration import RIGID, Declaration
from repsim.similarity.dissimilarity import (
    DECIMALS,
    DECIMALS_COARSE,
    cosines,
    rounded,
    squared_distances,
    with_ties,
)
from repsim.similarity.exact import recentred
from repsim.similarity.prepared import GramMeasure, Undefined

_SOURCE = "Huh et al. 2024, arXiv 2405.07987"
FEW = 0.01  # ties of float32 inner products, as a part of the samples, that are chance
ON_A_LINE = Undefined(
    "all activations lie on one line, such as a single feature: seen from their mean all cosines "
    "are 1 or -1 and tell no neighbours apart; take the measure mutual-knn,metric=euclidean"
)


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of every sample.

    Attributes:
        nearest: (n, k) their positions, nearest first.
        among: (n, n) whether j is a neighbour of i.
        tied: samples of which the last neighbour is as near as one that is left out.
        coarse: as near to float32 only.
    """

    nearest: Tensor
    among: Tensor
    tied: int
    coarse: bool


def neighbours(nearness: Tensor, k: int, coarse: bool) -> Neighbours:
    """Of a matrix (n, n) whose larger entries are nearer; the diagonal does not count."""
    nearness = nearness.clone().fill_diagonal_(-torch.inf)
    sizes, order = nearness.sort(dim=1, descending=True, stable=True)
    nearest = order[:, :k].contiguous()
    among = torch.zeros_like(nearness, dtype=torch.bool).scatter_(1, nearest, True)
    tied = int((sizes[:, k - 1] == sizes[:, k]).sum())
    return Neighbours(nearest, among, tied, coarse)


def shared(x: Neighbours, y: Neighbours) -> Tensor:
    """(n, k) which of x's neighbours are y's too."""
    return y.among.gather(1, x.nearest)


def tie_remark(found: Neighbours) -> str:
    """What to say of ties; of a few that may be float32's rounding nothing."""
    samples = len(found.nearest)
    if found.tied <= (FEW * samples if found.coarse else 0):
        return ""
    return (
        f"{found.tied} of {samples} samples whose last neighbour is as near as the next one, up to "
        "rounding, such as equal activations; the first in the order of the samples is taken, in "
        "every layer, which looks alike"
    )


def on_a_line(kernel: Tensor, coarse: bool) -> bool:
    """Whether a centred Gram matrix (n, n) has rank 1, up to rounding."""
    slack = DECIMALS_COARSE - 1 if coarse else DECIMALS - 1
    return bool(kernel.square().sum() >= (1 - 10.0**-slack) * kernel.trace() ** 2)


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

    def of_gram(self, kernel: Tensor, coarse: bool) -> Neighbours | Undefined:
        """The neighbours."""
        if self.metric == "cosine" and on_a_line(kernel, coarse):
            return ON_A_LINE
        kernel = with_ties(kernel, coarse)
        if self.metric == "cosine":
            near = rounded(cosines(recentred(kernel)), coarse)
        else:
            near = -squared_distances(kernel, coarse)
        return neighbours(near, self.k, coarse)

    def remark(self, state: Neighbours) -> str:
        """Ties."""
        return tie_remark(state)


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
    """A kernel and where its neighbours are.

    Attributes:
        neighbours: of every sample.
        mutual: (n, k) whether i is a neighbour of its neighbour too.
        kernel: (n, n) of all samples.
        square: HSIC of the kernel between neighbours with itself.
    """

    neighbours: Neighbours
    mutual: Tensor
    kernel: Tensor
    square: float


@dataclass(frozen=True)
class CKNNA(GramMeasure[Local]):
    """CKA between neighbours only: HSIC(M∘K, M∘L)/√(HSIC(M_x∘K, M_x∘K)·HSIC(M_y∘L, M_y∘L)).

    M_x has a 1 where j is among the k nearest neighbours of i in X, and M = M_x∘M_y where it is in
    both. K and L are the cosines by which the neighbours are found. HSIC is the debiased one (see
    `Sums.hsic`), with tr(K̃·L̃): of matrices that M makes asymmetric, it counts a pair of samples
    in its first term only where each is a neighbour of the other.

    This is what the authors' program computes (`cknna` with `unbiased`), but for three things.
    Theirs are cosines of activations as they are, these seen from their mean, so that an offset
    changes nothing. Of matrices that are not symmetric 1ᵀK̃L̃1 depends on which comes first; here
    it is the mean of both orders. Nothing is added to the denominator. The paper's own formula
    (appendix) has the kernels minus their row means under the mask, no debiasing.

    1 for the same neighbours and cosines. The masks above and below the line differ, so that
    nothing bounds it: of few samples it can be above 1.

    Attributes:
        k: neighbours of each sample.
    """

    k: int = 10

    word = "cknna"
    declaration = Declaration(
        "more alike", -math.inf, math.inf, True, RIGID, "gram", "n²·p + n²·log n + n·k", _SOURCE
    )

    def __post_init__(self) -> None:
        _check_k(self.word, self.k)

    def least(self) -> int:
        """With k + 1 samples, all others are neighbours; the debiased HSIC takes 4."""
        return max(self.k + 2, 4)

    def of_gram(self, kernel: Tensor, coarse: bool) -> Local | Undefined:
        """The kernel and its neighbours."""
        if on_a_line(kernel, coarse):
            return ON_A_LINE
        kernel = cosines(recentred(with_ties(kernel, coarse)))
        found = neighbours(rounded(kernel, coarse), self.k, coarse)
        mutual = found.among.T.gather(1, found.nearest)
        alone = Local(found, mutual, kernel, 0.0)
        square = _between_neighbours(alone, alone)
        if not square > 0:
            return Undefined("its neighbours have no similarity with themselves to be divided by")
        return Local(found, mutual, kernel, square)

    def between(self, x: Local, y: Local) -> float:
        """See the class."""
        return _between_neighbours(x, y) / math.sqrt(x.square * y.square)

    def remark(self, state: Local) -> str:
        """Ties."""
        return tie_remark(state.neighbours)


def _between_neighbours(x: Local, y: Local) -> float:
    """n·(n - 3)·HSIC(M∘K, M∘L), M the neighbours of both; n·k products."""
    nearest = x.neighbours.nearest
    n = len(nearest)
    both = shared(x.neighbours, y.neighbours)
    k, l = (one.kernel.gather(1, nearest) * both for one in (x, y))  # noqa: E741
    back = x.mutual & y.neighbours.among.T.gather(1, nearest)
    first = (k * l * back).sum()
    columns_k, columns_l = (
        torch.zeros(n, dtype=part.dtype, device=part.device).index_add_(
            0, nearest.flatten(), part.flatten()
        )
        for part in (k, l)
    )
    cross = (columns_k @ l.sum(1) + columns_l @ k.sum(1)) / 2
    total = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return float(first + total - 2 / (n - 2) * cross)


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
    """CKA between nearest neighbours, 1 for the same ones; see `CKNNA` and `mutual_knn`."""
    return CKNNA(k)(X, Y)
