"""Kernels: what becomes of the inner products of two tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.registry import near
from repsim.similarity.centred import CentredTiles, GramTiles

KERNELS = ("linear", "rbf")
CONSTANT = "constant activations"
MEDIAN_SAMPLES = 2000  # rows from which the median distance is taken, where there are more
HALF_EQUAL = "half of the distances between samples are 0"
# Squared distances this small beside the squared norms are rounding: of float32 inner products,
# and of float64 ones.
SAME_FLOAT32, SAME = 1e-6, 1e-13
# Float32 inner products are good enough where the largest squared norm is at most so many times the
# median squared distance.
FAR = 1e4


@dataclass(frozen=True)
class Kernel:
    """A kernel by name, with the RBF's bandwidth as a fraction of the median distance."""

    name: str
    bandwidth: float | None

    @classmethod
    def of(cls, text: str) -> Kernel:
        """`linear`, `rbf` (half the median distance) or `rbf:FRACTION`.

        Raises:
            UserError: another name, or a fraction that is not a positive number.
        """
        name, _, fraction = text.partition(":")
        if name not in KERNELS or (fraction and name == "linear"):
            raise UserError(
                f"kernel expects linear, rbf or rbf:FRACTION; got {text!r}; near: "
                f"{near(name, KERNELS, limit=1)}"
            )
        if name == "linear":
            return cls("linear", None)
        try:
            bandwidth = float(fraction or 0.5)
        except ValueError:
            bandwidth = math.nan
        if not 0 < bandwidth < math.inf:
            raise UserError(
                "kernel rbf:FRACTION expects the bandwidth as a positive fraction of the median "
                f"distance; got {text!r}; try rbf:0.5"
            )
        return cls("rbf", bandwidth)

    def fit(self, source: CentredTiles | GramTiles) -> Fitted:
        """What has to be known of a representation before its tiles."""
        return Linear(source) if self.bandwidth is None else RBF(source, self.bandwidth)


class Fitted(Protocol):
    """A kernel for one representation.

    The numbers it writes are K_ij/scale + u_i + u_j for some u. HSIC does not see u: U-centring
    and double centring both remove whatever is constant along rows or along columns. A good u
    keeps large terms from cancelling later.

    Attributes:
        scale: size of the kernel that was divided out.
        doubtful: float32 inner products do not give this kernel, and float64 ones would.
        diagonal: (tiles, groups·block) float64 the same for i = j, 0 where padded.
        degenerate: why this representation has no kernel; "" if it has one.
    """

    scale: float
    diagonal: Tensor
    degenerate: str
    doubtful: bool

    def apply_(self, products: Tensor, a: int, b: int) -> None:
        """From inner products of tiles a and b, (groups·block, groups·block), in place."""


class Linear:
    """K_ij = x_i·x_j in units of the mean squared norm.

    The rows of the centred K, diagonal set to zero, sum to -k_ii, so U-centring is known before
    the products are: K_ij + k_ii/(n-2) + k_jj/(n-2) - tr K/((n-1)(n-2)) (Székely and Rizzo 2014).

    Attributes:
        size: `scale` of the numbers that `CentredTiles` gives, in its unit.
    """

    doubtful = False

    def __init__(self, source: CentredTiles | GramTiles) -> None:
        samples = source.plan.samples
        self.degenerate = CONSTANT if source.constant else ""
        self.size = 1.0 if source.constant else float(source.norms.sum()) / samples
        self.scale = self.size / source.unit**2
        norms = source.norms / self.size
        inner = max(samples - 2, 1)
        shift = norms / inner - norms.sum() / (2 * max(samples - 1, 1) * inner)
        self.diagonal = norms + 2 * shift
        for tile, padded in enumerate(source.plan.padded):
            self.diagonal[tile, torch.from_numpy(padded).to(source.device)] = 0
        self._shift = shift

    def apply_(self, products: Tensor, a: int, b: int) -> None:
        """Scale and U-centre."""
        left, right = (self._shift[tile].to(products.dtype) for tile in (a, b))
        products.mul_(1 / self.size).add_(left[:, None]).add_(right)


class RBF:
    """K_ij = exp(-|x_i - x_j|²/(2σ²)), σ = fraction × the median distance between samples.

    The kernel's value at the median distance is subtracted from all (see `Fitted`). Source of the
    bandwidth: Kornblith et al. 2019, section 3. The median is over all pairs of at most
    `MEDIAN_SAMPLES` rows; of more samples so many are drawn with a fixed seed. Distances that are
    no more than rounding are 0.
    """

    scale = 1.0

    def __init__(self, source: CentredTiles | GramTiles, fraction: float) -> None:
        same = _same(source)
        median = 0.0 if source.constant else median_distance(source, same)
        if source.constant:
            self.degenerate = CONSTANT
        else:
            self.degenerate = "" if median else HALF_EQUAL
        unsure = same == 0 and float(source.norms.max()) > FAR * median**2
        self.doubtful = unsure and not source.constant
        if self.doubtful:
            self.degenerate = ""  # float64 decides
        self._gamma = 1 / (2 * (fraction * median) ** 2) if median else 0.0
        self._norms = source.norms * self._gamma
        self._same = same
        self._level = math.exp(-1 / (2 * fraction**2))
        real = torch.from_numpy(~np.stack(source.plan.padded)).to(source.device)
        self.diagonal = (1 - self._level) * real.double()

    def apply_(self, products: Tensor, a: int, b: int) -> None:
        """Squared distances, then the exponential."""
        left, right = (self._norms[tile].to(products.dtype) for tile in (a, b))
        products.mul_(2 * self._gamma).sub_(left[:, None]).sub_(right)
        if self._same:
            products.masked_fill_(products >= -self._same * (left[:, None] + right), 0)
        products.clamp_(max=0).exp_().sub_(self._level)


def _same(source: CentredTiles | GramTiles) -> float:
    """What part of the squared norms a squared distance of 0 can be; 0: not known, leave it."""
    if isinstance(source, GramTiles):
        return SAME_FLOAT32
    return SAME if source.exact else 0.0


def median_distance(source: CentredTiles | GramTiles, same: float) -> float:
    """Median Euclidean distance between different samples; `same` as in `_same`."""
    plan = source.plan
    chosen = np.arange(plan.samples)
    if plan.samples > MEDIAN_SAMPLES:
        draw = np.random.default_rng(0)
        chosen = np.sort(draw.choice(plan.samples, MEDIAN_SAMPLES, replace=False))
    places = []  # per tile: which of its rows, in its own order, were chosen
    for (start, _), order, padded in zip(plan.tiles, plan.order, plan.padded, strict=True):
        places.append(torch.from_numpy(np.flatnonzero(np.isin(start + order, chosen) & ~padded)))
    distances = []
    for a, b in plan.pairs:
        rows, columns = places[a].to(source.device), places[b].to(source.device)
        both = source.norms[a][rows][:, None] + source.norms[b][columns]
        squares = both - 2 * source.inner(a, b, rows, columns)
        squares.masked_fill_(squares <= same * both, 0)
        if a == b:
            over = torch.triu_indices(len(rows), len(rows), 1, device=source.device)
            squares = squares[over[0], over[1]]
        distances.append(squares.flatten().clamp_(min=0).sqrt().cpu().numpy())
    return float(np.median(np.concatenate(distances)))
