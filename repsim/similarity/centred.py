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
from repsim.similarity.representation import Representation, describe
from repsim.similarity.tiles import Plan


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
