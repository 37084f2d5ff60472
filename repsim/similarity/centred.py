"""The tiles of one representation in float32, moved near zero.

Activations can lie far from zero (an offset of 1e4 beside a spread of 1), where float32 products
lose what matters. HSIC does not change when the same vector is subtracted from all samples, so
which vector it is decides only about rounding: it need not be the exact mean. The mean of the first
tile is as good, and saves a pass over the activations.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.grams import GramRepresentation
from repsim.similarity.representation import Representation, describe
from repsim.similarity.tiles import Plan

LEAF = 128  # rows of a square on the diagonal of which both halves are computed


class Buffers:
    """Room for two tiles, used again for every representation: no page is faulted in twice."""

    def __init__(self, plan: Plan, widest: int, device: torch.device) -> None:
        self.rows = plan.groups * plan.block
        slots = 2 if len(plan.tiles) > 1 else 1
        self._room = [torch.empty(self.rows * widest, device=device) for _ in range(slots)]

    def take(self, slot: int, features: int) -> Tensor:
        """A tile (rows, features) with any content; good until the slot is taken again."""
        return self._room[slot][: self.rows * features].view(self.rows, features)


class CentredTiles:
    """Tiles (groups·block, features) of a representation; reads nothing before `prepare`.

    Attributes:
        norms: (tiles, groups·block) float64 squared norms of the centred rows, 0 where padded.
        constant: every sample has the same activations.
    """

    norms: Tensor
    constant: bool

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
        self._tiles: dict[int, Tensor] = {}
        self._centre: Tensor | None = None

    def prepare(self) -> None:
        """Find the centre and the norms; at the first call only.

        Raises:
            UserError: NaN, infinity or numbers beyond the products' range, naming the sample.
        """
        if self._centre is not None:
            return
        first: Tensor | None = None
        self.constant = True
        norms = []
        for index in range(len(self.plan.tiles)):
            values = self._load(index, 0)
            first = values[0].clone() if first is None else first
            # In pieces: the first one shows of nearly every layer that it varies.
            self.constant = self.constant and all(
                bool((piece == first).all()) for piece in values.split(64)
            )
            values[self._padded[index]] = 0
            norms.append(torch.linalg.vector_norm(values, dim=1).double().square())
            if self._keep or len(self.plan.tiles) == 1:
                self._tiles[index] = values
        self.norms = torch.stack(norms)
        if not bool(self.norms.isfinite().all()):
            self._refuse()

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
        """Centred rows of a tile in order; its first one where padded."""
        start, stop = self.plan.tiles[index]
        rows = self.representation.rows(start, stop)
        source = torch.from_numpy(rows if rows.flags.writeable else rows.copy()).to(self.device)
        width = source.shape[1]
        if self._keep:
            out = torch.empty(self._buffers.rows, width, device=self.device)
        else:
            out = self._buffers.take(slot, width)
        if source.dtype == torch.float64:  # centred before it is rounded
            wide = source.index_select(0, self._order[index])
            if self._centre is None:
                self._centre = wide.mean(0)
            return out.copy_(wide.sub_(self._centre))
        if source.dtype == torch.float32:
            torch.index_select(source, 0, self._order[index], out=out)
        else:
            out.copy_(source.index_select(0, self._order[index]))
        if self._centre is None:
            self._centre = out.mean(0)
        return out.sub_(self._centre)

    def _refuse(self) -> None:
        name = describe(self.representation)
        for start, stop in self.plan.tiles:
            bad = ~np.isfinite(self.representation.rows(start, stop)).all(1)
            if bad.any():
                sample = start + int(np.flatnonzero(bad)[0])
                raise UserError(
                    f"{name} expects finite activations; sample {sample} has NaN or infinity; "
                    "look at the network's input there, or leave the layer out"
                )
        raise UserError(
            f"{name} expects activations whose squares float32 can hold; they are larger; scale "
            "them down (CKA does not change)"
        )


class GramTiles:
    """The same for a representation of which only the inner products are known.

    Attributes:
        norms, constant: as in `CentredTiles`.
    """

    norms: Tensor
    constant: bool

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
        out = torch.empty([self.plan.groups * self.plan.block] * 2, device=self.device)
        self.products(a, b, out)
        return out[rows][:, columns]

    def release(self) -> None:
        """Nothing is held."""


def _multiply(left: Tensor, right: Tensor, out: Tensor, block: int) -> None:
    """Inner products of the rows of two tiles; of a tile with itself at least the upper blocks."""
    if left is not right:
        torch.mm(left, right.T, out=out)
    elif left.device.type == "cpu":
        # numpy hands A·Aᵀ to syrk, half the work; torch has no call for it.
        np.matmul(left.numpy(), left.numpy().T, out=out.numpy())
    else:
        _upper(left, out, block)


def _upper(rows: Tensor, out: Tensor, block: int) -> None:
    """By halves: large rectangular products, which run at full speed."""
    if len(rows) <= max(block, LEAF):
        torch.mm(rows, rows.T, out=out)
        return
    half = len(rows) // block // 2 * block
    _upper(rows[:half], out[:half, :half], block)
    torch.mm(rows[:half], rows[half:].T, out=out[:half, half:])
    _upper(rows[half:], out[half:, half:], block)
