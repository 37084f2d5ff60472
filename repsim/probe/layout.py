"""The values of a layer in the order in which they lie in memory, so that none is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The order of an output's axes in memory; of channels_last (height, width, channels).

    Attributes:
        axes: those of an output (batch, *shape) but the batch, the slowest first.
    """

    axes: tuple[int, ...]

    @classmethod
    def of(cls, output: Tensor) -> Layout:
        """That of an output (batch, *shape)."""
        return cls(tuple(sorted(range(1, output.ndim), key=lambda axis: -output.stride()[axis])))

    def rows(self, output: Tensor) -> Tensor:
        """(batch, features) in this order: a view of an output that has it, else a copy."""
        return output.permute(0, *self.axes).flatten(1)

    def flattened(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values (..., features) in this order as those of the output's `flatten`.

        Args:
            values: one for each feature in the last dimension.
            shape: of the output for one image.
        """
        before = values.ndim - 1
        grid = values.unflatten(-1, [shape[axis - 1] for axis in self.axes])
        back = [before + self.axes.index(axis) for axis in range(1, len(shape) + 1)]
        return grid.permute(*range(before), *back).flatten(before)
