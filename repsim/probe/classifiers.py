"""What a trained probe is: standardised features to a score for each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from repsim.probe.reduce import Reduction

# A feature whose deviation is this small beside its mean is a constant and its rounding.
CONSTANT = 1e-6


def inverse_deviation(mean: Tensor, variance: Tensor) -> Tensor:
    """1/σ of each feature; 0 for one that is constant, which then says nothing.

    Args:
        mean, variance: (features,), of the training features.
    """
    deviation = variance.clamp_min(0).sqrt()
    return deviation.reciprocal().masked_fill_(deviation <= CONSTANT * mean.abs(), 0.0)


@dataclass(frozen=True)
class Linear:
    """W·((x - mean)·scale) + b, float32.

    Attributes:
        weight: W (classes, used).
        bias: b (classes,).
        mean, scale: (used,), of the training features; scale is 0 for a constant one.
        strength: of the penalty that was chosen.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    strength: float

    def scores(self, features: Tensor) -> Tensor:
        """Logits (batch, classes); gradients pass to the features."""
        standard = (features - self.mean) * self.scale
        return F.linear(standard, self.weight, self.bias)

    def folded(self, reduction: Reduction) -> tuple[Tensor, Tensor]:
        """The same as weight (classes, values of the layer) and bias of its flattened output.

        What `repsim.attacks.probe` takes. With features far from 0 it rounds worse than `scores`.
        """
        weight = self.weight * self.scale
        bias = self.bias - (weight.double() @ self.mean.double()).float()
        return reduction.lifted(weight), bias


@dataclass(frozen=True)
class Neighbours:
    """The vote of the k nearest training images, by Euclidean distance of standardised features.

    Among classes with as many votes the first is chosen, as scikit-learn does.

    Attributes:
        train: standardised training features (n, used).
        labels: int64 (n,).
        mean, scale: (used,).
        classes: number of classes.
        strength: k.
    """

    train: Tensor
    labels: Tensor
    mean: Tensor
    scale: Tensor
    classes: int
    strength: float

    def scores(self, features: Tensor) -> Tensor:
        """Votes (batch, classes)."""
        return votes(self.nearest(features, int(self.strength)), self.classes)

    def nearest(self, features: Tensor, most: int) -> Tensor:
        """Labels (batch, most) of the nearest training images, nearest first."""
        standard = (features - self.mean) * self.scale
        # |a - b|² without |a|², which is the same for all b.
        distance = (self.train**2).sum(1) - 2 * standard @ self.train.T
        return self.labels[distance.topk(most, largest=False, sorted=True).indices]


Classifier = Linear | Neighbours


def votes(labels: Tensor, classes: int) -> Tensor:
    """How often each class is among labels (batch, k): (batch, classes)."""
    return F.one_hot(labels, classes).sum(1).float()
