"""What a probe sees of a layer: all of its output, or fewer numbers that are linear in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repsim.errors import UserError
from repsim.reduce import Reduce, parse_reduce

AUTO = "auto"


@dataclass(frozen=True)
class Reduction:
    """A linear map from a layer's output (batch, *shape) to features (batch, used).

    Attributes:
        text: "flatten", "avgpool", "project:K", or "grid:HxW" for means over the cells of a grid
            of H×W positions of each channel.
        shape: of the layer's output for one image.
        used: features that are left.
        window: positions (height, width) in a cell of a grid.
    """

    text: str
    shape: tuple[int, ...]
    used: int
    window: tuple[int, int] | None = None
    rest: Reduce | None = None

    @property
    def features(self) -> int:
        """Values of the layer's output for one image."""
        return math.prod(self.shape)

    def __call__(self, outputs: Tensor) -> Tensor:
        """Float32 features (batch, used) of outputs (batch, *shape); gradients pass."""
        with torch.autocast(outputs.device.type, enabled=False):
            if self.window is not None:
                return F.avg_pool2d(outputs.float(), self.window).flatten(1)
            assert self.rest is not None
            return self.rest(outputs)

    def lifted(self, weight: Tensor) -> Tensor:
        """Weights (classes, used) as those of the flattened output, (classes, features).

        The map is linear, so its adjoint does that: R(x)·w = x·Rᵀ(w).
        """
        with torch.enable_grad():
            zero = weight.new_zeros(len(weight), *self.shape).requires_grad_(True)
            total = (self(zero) * weight.detach()).sum()
            (lifted,) = torch.autograd.grad(total, zero)
        return lifted.flatten(1)


def choose_reduction(text: str, shape: tuple[int, ...], most: int) -> Reduction:
    """What a probe sees of outputs of one shape.

    Args:
        text: "flatten", "avgpool", "project:K", or "auto": all of a layer of at most `most`
            values; of a wider one (C, H, W) means over the finest grid of equal cells that
            leaves at most `most`, one cell where none does; of any other a projection onto
            random signs, project:`most`.
        shape: of the output for one image.
        most: features that "auto" leaves at most.

    Raises:
        UserError: another text, or `most` below 1.
    """
    if most < 1:
        raise UserError(f"--features expects at least 1; got {most}")
    if text != AUTO:
        try:
            rest = parse_reduce(text)
        except UserError as error:
            raise UserError(str(error).replace("flatten,", "auto, flatten,", 1)) from None
        return Reduction(rest.text, shape, rest.features(shape), rest=rest)
    if math.prod(shape) <= most:
        return Reduction("flatten", shape, math.prod(shape), rest=Reduce("flatten"))
    if len(shape) != 3:
        rest = Reduce("project", most)
        return Reduction(rest.text, shape, most, rest=rest)
    channels, height, width = shape
    for size in range(2, max(height, width) + 1):
        window = (size, size)
        if height % size or width % size:
            continue
        rows, columns = height // size, width // size
        if channels * rows * columns <= most and rows * columns > 1:
            return Reduction(
                f"grid:{rows}x{columns}", shape, channels * rows * columns, window=window
            )
    return Reduction("avgpool", shape, channels, rest=Reduce("avgpool"))
