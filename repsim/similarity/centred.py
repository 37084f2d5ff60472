"""The tiles of one representation in float32, moved near zero.

Activations can lie far from zero (an offset of 1e4 beside a spread of 1), where float32 products
lose what matters. HSIC does not change when the same vector is subtracted from all samples, so
which vector it is decides only about rounding. It is the mean, from which U-centring is known
before the products are; where activations do not stay in memory, the mean of the first tile, which
saves a pass over them. `Sums.unclear` tells where that has not been good enough.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.grams import LEAST, MOST, GramRepresentation
from repsim.similarity.halves import half_product
from repsim.similarity.products import rounding
from repsim.similarity.representation import Representation, describe, refuse_not_finite, unit_for
from repsim.similarity.tiles import Plan


class Buffers:
    """Room for two tiles, used again for every representation: no page is faulted in twice."""

    def __init__(
        self, plan: Plan, widest: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.rows, self.dtype = plan.groups * plan.block, dtype
        slots = 2 if len(plan.tiles) > 1 else 1
        self._room = [
            torch.empty(self.rows * widest, dtype=dtype, device=device) for _ in range(slots)
        ]

    def take(self, slot: int, features: int) -> Tensor:
        """A tile (rows, features) with any content; good until the slot is taken again."""
        return self._room[slot][: self.rows * features].view(self.rows, features)


class CentredTiles:
    """Tiles (groups·block, features) of a representation; reads nothing before `prepare`.

    Of the type of the buffers; in float64 they are centred over all samples.

    Attributes:
        norms: (tiles, groups·block) float64 squared norms of the centred rows, 0 where padded.
        constant: every sample has the same activations, up to `rounding`.
        unit: power of two by which activations of extreme size are multiplied; 1 for others.
        exact: in float64.
    """

    norms: Tensor
    constant: bool
    unit: float

    def __init__(
        self,
        representation: Representation,
        plan: Plan,
        buffers: Buffers,
        *,
        keep: bool,
        device: torch.device,
    ) -> None:
        self.representation = representation
        self.plan = plan
        self.device = device
        self._buffers = buffers
        self._order = [torch.from_numpy(order).to(device) for order in plan.order]
        self._padded = [torch.from_numpy(np.flatnonzero(p)).to(device) for p in plan.padded]
        self._keep = keep
        self.exact = buffers.dtype == torch.float64
        self._tiles: dict[int, Tensor] = {}
        self._centre: Tensor | None = None
        self._rounding = 0.0
        self.unit = 1.0

    def prepare(self) -> None:
        """Find the centre and the norms; at the first call only.

        Raises:
            UserError: NaN or infinity, naming the sample.
        """
        if self._centre is not None:
            return
        if self.exact and len(self.plan.tiles) > 1:
            self._centre = self._mean()
        self._measure()
        total = float(self.norms.sum())
        if not LEAST * self.plan.samples < total < MOST:
            self._rescale()
            total = float(self.norms.sum())
        assert self._centre is not None
        level = float((self._centre.double() * self.unit).square().sum())
        self.constant = total <= self._rounding**2 * self.plan.samples * level

    def _measure(self) -> None:
        """The norms, and the centre where it is not known yet."""
        norms, whole = [], len(self.plan.tiles) == 1
        # In memory, what the mean of the first tile has left costs little.
        again = self._centre is None and self._keep and not whole
        totals = []
        for index in range(len(self.plan.tiles)):
            values = self._load(index, 0)
            values[self._padded[index]] = 0
            if self._keep or whole:
                self._tiles[index] = values
            if again:
                totals.append(values.sum(0))
            else:
                norms.append(_square_norms(values))
        if again and self._centre is not None:
            rest = torch.stack(totals).sum(0) / self.plan.samples
            self._centre = self._centre + rest
            for index, values in self._tiles.items():
                values.sub_(rest)[self._padded[index]] = 0
                norms.append(_square_norms(values))
        self.norms = torch.stack(norms)

    def _mean(self) -> Tensor:
        """Of all samples, (features,) float64."""
        origin = np.array(self.representation.rows(0, 1)[0], np.float64)
        total = np.zeros_like(origin)
        for start, stop in self.plan.tiles:
            total += (self.representation.rows(start, stop) - origin).sum(0)
        return torch.from_numpy(origin + total / self.plan.samples).to(self.device)

    def _rescale(self) -> None:
        """Bring what is too large or too small for squares in float32 to a size near 1.

        Raises:
            UserError: NaN or infinity.
        """
        self._tiles.clear()
        self._centre = mean = self._mean()
        if not bool(mean.isfinite().all()):
            refuse_not_finite(self.representation)
        start, stop = self.plan.tiles[0]
        self.unit = unit_for(self.representation, mean.cpu().numpy(), stop - start)
        self._measure()

    def tile(self, index: int, slot: int = 0) -> Tensor:
        """Rows of tile `index`, sorted by group, zero where padded; good until `slot` is reused."""
        if index not in self._tiles:
            values = self._load(index, slot)
            values[self._padded[index]] = 0
            return values
        return self._tiles[index]

    def products(self, a: int, b: int, out: Tensor) -> None:
        """Inner products of tiles a and b; of a tile with itself at least the upper blocks.

        Args:
            a: tile of the rows.
            b: tile of the columns.
            out: (groups·block, groups·block), is filled.
        """
        left = self.tile(a)
        _multiply(left, left if a == b else self.tile(b, 1), out, self.plan.block)

    def inner(self, a: int, b: int, rows: Tensor, columns: Tensor) -> Tensor:
        """Inner products of some rows of tile a with some of tile b, (rows, columns)."""
        left = self.tile(a)[rows]  # copies: the second may come into the buffer of the first
        return left @ self.tile(b)[columns].T

    def release(self) -> None:
        """The buffers go to another representation."""
        if not self._keep:
            self._tiles.clear()

    def _load(self, index: int, slot: int) -> Tensor:
        """Centred rows of a tile in order; anything where padded."""
        start, stop = self.plan.tiles[index]
        rows = self.representation.rows(start, stop)
        source = torch.from_numpy(rows if rows.flags.writeable else rows.copy()).to(self.device)
        width = source.shape[1]
        self._rounding = rounding(source.dtype)
        if self._keep:
            out = torch.empty(
                self._buffers.rows, width, dtype=self._buffers.dtype, device=self.device
            )
        else:
            out = self._buffers.take(slot, width)
        if source.dtype == torch.float64 or self.unit != 1:  # centred before it is rounded
            source = source.double()
            if self._centre is None:
                self._centre = source.mean(0)
            wide = source.index_select(0, self._order[index]).sub_(self._centre)
            return out.copy_(wide if self.unit == 1 else wide.mul_(self.unit))
        if source.dtype == out.dtype:
            torch.index_select(source, 0, self._order[index], out=out)
        else:
            out.copy_(source.index_select(0, self._order[index]))
        if self._centre is None:
            out[self._padded[index]] = 0
            self._centre = out.sum(0).div_(stop - start)
        return out.sub_(self._centre)


class GramTiles:
    """The same for a representation of which only the inner products are known.

    Attributes:
        norms, constant, unit: as in `CentredTiles`.
    """

    norms: Tensor
    constant: bool
    unit = 1.0

    def __init__(
        self, representation: GramRepresentation, plan: Plan, *, device: torch.device
    ) -> None:
        self.representation, self.plan, self.device = representation, plan, device
        self._prepared = False

    def prepare(self) -> None:
        """Read the diagonal; at the first call only.

        Raises:
            UserError: NaN or infinity in it.
        """
        if self._prepared:
            return
        diagonal = [
            np.diagonal(self.representation.gram(slice(start, stop), slice(start, stop)))
            for start, stop in self.plan.tiles
        ]
        if not all(np.isfinite(part).all() for part in diagonal):
            raise UserError(
                f"{describe(self.representation)} expects finite inner products; its Gram matrix "
                "has NaN or infinity; look at the activations, or leave the layer out"
            )
        self.norms = torch.zeros(len(diagonal), self.plan.groups * self.plan.block).double()
        for index, part in enumerate(diagonal):
            real = ~self.plan.padded[index]
            self.norms[index, real] = torch.from_numpy(part[self.plan.order[index][real]]).double()
        self.norms = self.norms.to(self.device)
        self.constant = not bool((self.norms > 0).any())
        self._prepared = True

    def products(self, a: int, b: int, out: Tensor) -> None:
        """See `CentredTiles.products`."""
        rows, columns = (slice(*self.plan.tiles[tile]) for tile in (a, b))
        found = torch.from_numpy(np.ascontiguousarray(self.representation.gram(rows, columns)))
        left, right = (torch.from_numpy(self.plan.order[tile]) for tile in (a, b))
        out.copy_(found[left][:, right])

    def inner(self, a: int, b: int, rows: Tensor, columns: Tensor) -> Tensor:
        """See `CentredTiles.inner`."""
        side = self.plan.groups * self.plan.block
        out = torch.empty(side, side, device=self.device)
        self.products(a, b, out)
        return out[rows][:, columns]

    def release(self) -> None:
        """Nothing is held."""


def _square_norms(rows: Tensor) -> Tensor:
    """(n,) float64"""
    return torch.linalg.vector_norm(rows, dim=1).double().square()


def _multiply(left: Tensor, right: Tensor, out: Tensor, block: int) -> None:
    """Inner products of the rows of two tiles; of a tile with itself at least the upper blocks."""
    if left is not right:
        torch.mm(left, right.T, out=out)
    else:
        half_product(left, out, block)
