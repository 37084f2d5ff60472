"""Normalisation inside the model, so that everything outside works on pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """A pixel model: takes images in [0, 1], normalises, runs the encoder.

    An eps is then in pixel units whatever the normalisation. Mean and deviation are metadata of
    a checkpoint, not weights: the buffers are not in the state dict.

    Args:
        encoder: network on normalised images, (batch, channels, height, width) -> logits.
        mean: per-channel mean of the training images in [0, 1]; zeros for none.
        std: per-channel standard deviation; ones for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder = encoder
        for name, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor(list(values), dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width) in [0, 1]."""
        return self.encoder((pixels - self.mean) / self.std)
