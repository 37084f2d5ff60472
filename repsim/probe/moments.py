"""Sums over images from which least squares is exact, however the images came in batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repsim.probe.classifiers import inverse_deviation


@dataclass(frozen=True)
class Origin:
    """Where features are measured from, so that float32 products lose nothing to a large offset.

    Attributes:
        shift: (features,).
        unit: of length.
    """

    shift: Tensor
    unit: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Origin:
        """From a first batch (batch, features)."""
        shift = features.mean(0)
        spread = (features - shift).square().mean().sqrt()
        return cls(shift, torch.where(spread > 0, spread, torch.ones_like(spread)))


class Moments:
    """Σ x, Σ x xᵀ, Σ x yᵀ and the number of images of each class, of features x and one-hot y.

    Products of a batch in float32, sums of batches in float64; all about an origin. Those of two
    sets of images add up to those of both.
    """

    def __init__(self, origin: Origin, classes: int) -> None:
        features, device = len(origin.shift), origin.shift.device
        self.origin = origin
        self.sum = torch.zeros(features, dtype=torch.float64, device=device)
        self.products = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.cross = torch.zeros(features, classes, dtype=torch.float64, device=device)
        self.counts = torch.zeros(classes, dtype=torch.float64, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Images with features (batch, features) float32 and labels int64 (batch,)."""
        x = (features - self.origin.shift) / self.origin.unit
        y = F.one_hot(labels, len(self.counts)).float()
        self.sum += x.sum(0, dtype=torch.float64)
        self.products += x.T @ x
        self.cross += x.T @ y
        self.counts += y.sum(0)

    def __add__(self, other: Moments) -> Moments:
        """Those of the images of both, which share an origin."""
        total = Moments(self.origin, len(self.counts))
        for name in ("sum", "products", "cross", "counts"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    @property
    def finite(self) -> bool:
        """Whether no feature was NaN or infinite."""
        return bool(self.products.isfinite().all())

    def standardised(self) -> Standardised:
        """Correlations of features with one another and with the labels."""
        n = self.counts.sum()
        mean, priors = self.sum / n, self.counts / n
        covariance = self.products / n - torch.outer(mean, mean)
        unit = self.origin.unit.double()
        raw_mean = self.origin.shift.double() + mean * unit
        variance = covariance.diagonal() * unit**2
        scale = inverse_deviation(raw_mean, variance)
        inner = scale * unit
        return Standardised(
            covariance * inner * inner[:, None],
            (self.cross / n - torch.outer(mean, priors)) * inner[:, None],
            priors, raw_mean, scale,
        )  # fmt: skip


@dataclass(frozen=True)
class Standardised:
    """Of standardised features z and one-hot labels y.

    Attributes:
        correlation: E z zᵀ (features, features) float64; zero for a constant feature.
        cross: E z (y - E y)ᵀ (features, classes).
        priors: E y (classes,).
        mean, scale: z = (x - mean)·scale.
    """

    correlation: Tensor
    cross: Tensor
    priors: Tensor
    mean: Tensor
    scale: Tensor
