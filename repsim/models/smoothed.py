"""Inference smoothed over transformations (Kim et al. 2020, arXiv 2006.07589, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Smoothed(nn.Module):
    """log E_t[softmax f(t(x))], the mean over `draws` random transformations t of each image.

    A transformation is a crop of 50% to 100% of the area brought back to the image's size, a
    mirror image at one half, and brightness and contrast changed by up to 20%; it is
    differentiable in the pixels. Each forward draws anew, so the gradient of one is already a
    mean over `draws` (expectation over transformations, Athalye et al. 2018, arXiv 1802.00420):
    an attack that does not average over what the network draws looks weaker than it is.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits.
        draws: transformations of each image in a forward.
        seed: of the draws; results repeat for the same seed, batches and attacks.
        mirror: whether mirror images are among them (not for digits).
    """

    def __init__(
        self, model: nn.Module, draws: int = 10, seed: int = 0, mirror: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.draws = draws
        self.mirror = mirror
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, pixels: Tensor) -> Tensor:
        """Log-probabilities (batch, classes) of images (batch, channels, h, w) in [0, 1]."""
        views = self._transform(pixels.repeat(self.draws, 1, 1, 1))
        probability = self.model(views).float().softmax(1)
        mean = probability.view(self.draws, len(pixels), -1).mean(0)
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _uniform(self, like: Tensor, low: float, high: float) -> Tensor:
        """(batch,) uniform in [low, high]; drawn on the host, so equal on every device."""
        draws = torch.rand(len(like), generator=self.generator)
        return (low + (high - low) * draws).to(device=like.device, dtype=like.dtype)

    def _transform(self, x: Tensor) -> Tensor:
        side = self._uniform(x, 0.5, 1.0).sqrt()  # of the crop, over the image's
        shift_x = self._uniform(x, -1, 1) * (1 - side)
        shift_y = self._uniform(x, -1, 1) * (1 - side)
        flip = torch.ones_like(side)
        if self.mirror:
            flip = torch.where(self._uniform(x, 0, 1) < 0.5, -flip, flip)
        zero = torch.zeros_like(side)
        theta = torch.stack(
            [torch.stack([side * flip, zero, shift_x], 1), torch.stack([zero, side, shift_y], 1)], 1
        )  # (batch, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
        brightness = self._uniform(x, 0.8, 1.2).view(-1, 1, 1, 1)
        contrast = self._uniform(x, 0.8, 1.2).view(-1, 1, 1, 1)
        x = x * brightness
        grey = x.mean((1, 2, 3), keepdim=True)
        return ((x - grey) * contrast + grey).clamp(0, 1)
