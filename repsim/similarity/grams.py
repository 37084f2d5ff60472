"""Gram matrices of representations, made from activations or kept from an earlier pass.

Everything that is invariant to rotations of the features can be had from the n × n inner products
of the samples: with them a new pair, measure or interval costs no forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.halves import self_product
from repsim.similarity.products import rounding
from repsim.similarity.representation import (
    Batch,
    Representation,
    describe,
    refuse_not_finite,
    unit_for,
)

# Activations that are taken in at once, bytes.
_PIECE = 256 * 2**20
# Mean squared norm below which, and trace above which, products leave float32's range.
LEAST, MOST = 1e-18, 1e30


@runtime_checkable
class GramRepresentation(Representation, Protocol):
    """A representation of which the inner products are known instead of the activations.

    `features` is the number of columns that the activations had; `rows` refuses.
    """

    def gram(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Inner products of samples rows × columns, after centring the activations' columns.

        The centre is that of the samples which the representation holds; of any subset HSIC,
        distances and everything that centres again are the same.

        Raises:
            UserError: a part that was never computed: samples of two batches of a minibatch pass.
        """


@dataclass(frozen=True)
class ArrayGram:
    """A Gram matrix in memory.

    Attributes:
        values: (n, n) float32, of centred activations.
        features: columns of the activations that it was made of.
    """

    values: NDArray[np.float32]
    features: int
    layer: str = "layer"
    condition: str = "clean"
    model: str = "model"

    @property
    def samples(self) -> int:
        """n."""
        return len(self.values)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """There are none.

        Raises:
            UserError: always; the measure needs activations.
        """
        return no_activations(self)

    def gram(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """See `GramRepresentation`."""
        return self.values[rows, columns]


@dataclass(frozen=True)
class PackedGram:
    """The same from its packed upper triangle, which takes half the room; see `minibatch.pack`.

    Attributes:
        packed: (n(n+1)/2,) float32.
        samples: n.
        features: columns of the activations that it was made of.
    """

    packed: Tensor
    samples: int
    features: int
    layer: str = "layer"
    condition: str = "clean"
    model: str = "model"

    def rows(self, start: int, stop: int) -> np.ndarray:
        """There are none.

        Raises:
            UserError: always; the measure needs activations.
        """
        return no_activations(self)

    def gram(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """See `GramRepresentation`."""
        i = np.arange(self.samples)[rows, None]
        j = np.arange(self.samples)[None, columns]
        low, high = np.minimum(i, j), np.maximum(i, j)
        # Row `low` of the triangle begins after the longer rows before it.
        place = low * (2 * self.samples - low + 1) // 2 + high - low
        return np.asarray(self.packed.numpy()[place])


@dataclass(frozen=True)
class GramBatch(Batch):
    """Rows start to stop of a representation of which the inner products are known."""

    of: GramRepresentation

    def gram(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """See `GramRepresentation`; the centre is that of the whole."""

        def place(part: slice) -> slice:
            return slice(self.start + part.start, self.start + part.stop)

        return self.of.gram(place(rows), place(columns))


def batch_of(representation: Representation, start: int, stop: int) -> Representation:
    """Rows start to stop of it, of either kind."""
    kind = GramBatch if isinstance(representation, GramRepresentation) else Batch
    return kind(representation, start, stop)  # type: ignore[arg-type]


def no_activations(representation: Representation) -> np.ndarray:
    """What `rows` of a Gram matrix does."""
    raise UserError(
        f"{describe(representation)} holds inner products of samples, no activations, and this "
        "measure expects activations; extract them with repsim extract, or choose a measure that "
        "needs Gram matrices only"
    )


def centred_gram(representation: Representation) -> Tensor:
    """K = Xc·Xcᵀ, (n, n) float32, Xc the activations with their mean over samples subtracted.

    Columns are centred before they are multiplied, by a mean taken in float64: an offset of 1e4
    beside a spread of 1 costs no digits. The product's errors are those of float32, some 1e-6 of
    the largest entry. Zeros where activations are constant up to `rounding`. Activations whose
    products leave float32's range are multiplied by a power of two.

    Raises:
        UserError: activations that are not finite, naming the sample.
    """
    n = representation.samples
    if isinstance(representation, GramRepresentation):
        kernel = torch.from_numpy(np.array(representation.gram(slice(0, n), slice(0, n))))
        return _centred(kernel)
    rows = max(1, _PIECE // (8 * representation.features))
    pieces = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
    total = np.zeros(representation.features)
    for piece in pieces:
        values = np.asarray(representation.rows(piece.start, piece.stop))
        total += values.sum(0, dtype=np.float64)
        slack = rounding(torch.from_numpy(values[:1].copy()).dtype)
    mean = total / n
    if not np.isfinite(mean).all():
        refuse_not_finite(representation)
    kernel = _products(representation, pieces, mean, 1.0)
    trace, unit = float(kernel.diagonal().double().sum()), 1.0
    if not LEAST * n < trace < MOST:
        unit = unit_for(representation, mean, rows)
        kernel = _products(representation, pieces, mean, unit)
        trace = float(kernel.diagonal().double().sum())
    if trace <= slack**2 * n * float(np.square(mean * unit).sum()):
        kernel.zero_()
    return kernel


def _products(
    representation: Representation, pieces: list[slice], mean: NDArray[np.float64], unit: float
) -> Tensor:
    """Inner products (n, n) float32 of unit·(activations - mean), read in pieces."""
    kernel = torch.empty(representation.samples, representation.samples)

    def centred(piece: slice) -> NDArray[np.float32]:
        values = representation.rows(piece.start, piece.stop) - mean
        return (values if unit == 1 else values * unit).astype(np.float32)

    for i, first in enumerate(pieces):
        left = centred(first)
        kernel[first, first] = self_product(torch.from_numpy(left))
        for second in pieces[i + 1 :]:
            block = torch.from_numpy(left @ centred(second).T)
            kernel[first, second], kernel[second, first] = block, block.T
    return kernel


def _centred(kernel: Tensor) -> Tensor:
    """H·K·H; what a float32 product left of the means goes too."""
    rows = kernel.mean(1, dtype=torch.float64)
    shift = rows - rows.mean() / 2
    return (kernel - shift[:, None] - shift[None, :]).float()
