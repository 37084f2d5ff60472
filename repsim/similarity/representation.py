"""What the measures compare: the activations of one layer, read in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from repsim.errors import UserError


class Representation(Protocol):
    """One layer of one model under one condition; all of a comparison have the same samples.

    Row i is the same sample in every representation that is compared with this one.
    """

    @property
    def model(self) -> str:
        """Name of the network or of its store."""

    @property
    def condition(self) -> str:
        """Which inputs the activations come from: clean, noise, an attack."""

    @property
    def layer(self) -> str:
        """Name of the layer."""

    @property
    def samples(self) -> int:
        """Number of rows."""

    @property
    def features(self) -> int:
        """Number of columns, the layer's output flattened."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, (stop - start, features), of a floating type."""


@dataclass(frozen=True)
class ArrayRepresentation:
    """A representation that is already in memory; see `from_array`."""

    values: np.ndarray
    layer: str = "layer"
    condition: str = "clean"
    model: str = "model"

    @classmethod
    def from_array(
        cls, array: Any, *, layer: str = "layer", condition: str = "clean", model: str = "model"
    ) -> ArrayRepresentation:
        """From anything that is an array: numpy, a torch tensor on any device, nested lists.

        Args:
            array: (samples, features...); flattened to (samples, features) without a copy where
                possible. Whole numbers and bfloat16 become floating numbers that hold them.
            layer: name of the layer in the result.
            condition: name of the condition in the result.
            model: name of the model in the result.

        Raises:
            UserError: fewer than two dimensions, or no features.
        """
        if isinstance(array, Tensor):
            array = array.detach().cpu()
            array = (array if array.is_floating_point() else array.double()).flatten(1)
            array = (array.float() if array.element_size() == 2 else array).numpy()
        values = np.asarray(array)
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        if values.ndim < 2 or 0 in values.shape[1:]:
            raise UserError(
                "activations expect an array (samples, features...) with at least one feature; "
                f"got shape {values.shape}; a single feature is (samples, 1)"
            )
        return cls(values.reshape(len(values), -1), layer, condition, model)

    @property
    def samples(self) -> int:
        """Number of rows."""
        return int(self.values.shape[0])

    @property
    def features(self) -> int:
        """Number of columns."""
        return int(self.values.shape[1])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A view of rows start to stop."""
        return self.values[start:stop]


@dataclass(frozen=True)
class Batch:
    """Rows start to stop of another representation."""

    of: Representation
    start: int
    stop: int

    @property
    def model(self) -> str:
        """As in the whole."""
        return self.of.model

    @property
    def condition(self) -> str:
        """As in the whole."""
        return self.of.condition

    @property
    def layer(self) -> str:
        """As in the whole."""
        return self.of.layer

    @property
    def samples(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def features(self) -> int:
        """As in the whole."""
        return self.of.features

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the whole, counted from the batch's first."""
        return self.of.rows(self.start + start, self.start + stop)


def describe(representation: Representation) -> str:
    """How messages call a representation."""
    return f"layer {representation.layer} ({representation.condition}, {representation.model})"


def same_samples(representations: list[Representation]) -> int:
    """The number of rows that all have.

    Raises:
        UserError: none given, or the numbers differ.
    """
    if not representations:
        raise UserError("a comparison expects at least one representation; got none")
    first = representations[0]
    for other in representations:
        if other.samples != first.samples:
            raise UserError(
                "a comparison expects the same samples on both sides; "
                f"{describe(first)} has {first.samples}, {describe(other)} {other.samples}; "
                "match the rows by sample id first"
            )
    return first.samples
