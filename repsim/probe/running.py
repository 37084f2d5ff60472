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
            self.add_columns(
                part, features[:, part], room.of(features[:, part].shape, features.device)
            )
        self.count += len(features)

    def add_columns(self, part: slice, features: Tensor, room: Tensor) -> None:
        """Some columns of a batch; `count` is the caller's to raise after the last of them.

        Args:
            part: which ones.
            features: (batch, columns).
            room: as large, to be written over.
        """
        new = len(features)
        total = self.count + new
        mean32 = features.mean(0)
        squares = torch.sub(features, mean32, out=room).square_().sum(0)
        difference = mean32.double() - self.mean[part]
        self.mean[part] += difference * (new / total)
        self.squares[part] += squares.double() + difference**2 * (self.count * new / total)
        # Length about 1 instead of deviation 1: one learning rate then fits layers of any width.
        scale = inverse_deviation(self.mean[part], self.squares[part] / total)
        self.mean32[part] = self.mean[part].float()
        self.scale32[part] = (scale / len(self.mean) ** 0.5).float()

    def centred(self, part: slice, features: Tensor, room: Tensor) -> Tensor:
        """Some columns (batch, columns) of a batch less their means, in `room`."""
        return torch.sub(features, self.mean32[part], out=room)
