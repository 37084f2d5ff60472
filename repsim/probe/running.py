"""Mean and deviation of every feature while the images come in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from repsim.probe.classifiers import inverse_deviation
from repsim.probe.pieces import Room, pieces


class Running:
    """Mean and variance of features that come in batches (Chan, Golub and LeVeque 1983).

    Attributes:
        count: images so far.
        mean, squares: (features,) float64; squares are the sums of squared differences from it.
        mean32, scale32: (features,) float32: (features - mean)·scale is standardised.
    """

    def __init__(self, features: int, device: str) -> None:
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64, device=device)
        self.squares = torch.zeros(features, dtype=torch.float64, device=device)
        self.mean32 = torch.zeros(features, device=device)
        self.scale32 = torch.zeros(features, device=device)

    def add(self, features: Tensor) -> None:
        """A batch (batch, features)."""
        room = Room()
        for part in pieces(features.shape[1], features.device):
            self.look(part, features[:, part], room)
        self.count += len(features)

    def look(self, part: slice, features: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        """Add some columns of a batch; `count` is the caller's to raise after the last of them.

        Args:
            part: which ones.
            features: (batch, columns).
            room: to be written over.

        Returns:
            The features less a value near their means (batch, columns), in `room`, and what is left
            of that (columns,): the sum of both is `centred`, without another trip over the batch.
        """
        new = len(features)
        total = self.count + new
        # Sums of differences from a value nearby lose nothing to an offset.
        near = (self.mean32[part] if self.count else features[0]).clone()
        apart, squared = room.of((2, *features.shape), features.device)
        torch.sub(features, near, out=apart)
        ones = features.new_ones(new)  # whose product is faster than a sum over rows
        offset = (ones @ apart).double() / new
        squares = (ones @ torch.mul(apart, apart, out=squared)).double()
        mean = self.mean[part]
        difference = offset + (near - mean)
        self.squares[part] += squares - new * offset**2 + difference**2 * (self.count * new / total)
        mean += difference * (new / total)
        # Length about 1 instead of deviation 1: one learning rate then fits layers of any width.
        scale = inverse_deviation(mean, self.squares[part] / total) / len(self.mean) ** 0.5
        self.mean32[part], self.scale32[part] = mean, scale
        return apart, near - self.mean32[part]

    def centred(self, part: slice, features: Tensor, room: Room) -> Tensor:
        """Some columns (batch, columns) of a batch less their means, in `room`."""
        return torch.sub(features, self.mean32[part], out=room.of(features.shape, features.device))
