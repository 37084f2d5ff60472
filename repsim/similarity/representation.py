"""What the measures compare: the activations of one layer, read in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
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


def unit_for(representation: Representation, origin: NDArray[np.float64], rows: int) -> float:
    """The power of two that brings the activations, seen from an origin, to a size near 1.

    Args:
        representation: n samples, which are read.
        origin: (features,) near their mean.
        rows: that are read at once.

    Raises:
        UserError: NaN or infinity.
    """
    size = 0.0
    for start in range(0, representation.samples, rows):
        stop = min(start + rows, representation.samples)
        values = np.array(representation.rows(start, stop), dtype=np.float64)
        largest = float(np.abs(values - origin).max(initial=0.0))
        if not largest < np.inf:  # of NaN too, which max() would pass over
            refuse_not_finite(representation)
        size = max(size, largest)
    return float(2.0 ** np.clip(-np.frexp(size)[1], -1000, 1000)) if size else 1.0


def refuse_not_finite(representation: Representation) -> None:
    """Name the first sample with NaN or infinity.

    Raises:
        UserError: always.
    """
    for sample in range(representation.samples):
        if not np.isfinite(representation.rows(sample, sample + 1)).all():
            raise UserError(
                f"{describe(representation)} expects finite activations; sample {sample} has NaN "
                "or infinity; look at the network's input there, or leave the layer out"
            )
    raise UserError(
        f"{describe(representation)} expects activations whose squares float64 can hold; they are "
        "larger; scale them down"
    )
