"""The tiles of one representation, columns centred, in float32.

Activations can lie far from zero (an offset of 1e4 beside a spread of 1). The mean is subtracted
in two steps: first a rough one in the type of the source, which leaves numbers of the size of the
spread, then the mean of what is left. The result is as exact as subtracting a float64 mean, and
several times as fast, because no float64 copy of the activations is made.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.representation import Representation, describe
from repsim.similarity.tiles import Plan


class CentredTiles:
    """Tiles (groups·block, features) of a representation; reads nothing before `prepare`.

    Attributes:
        norms: (tiles, groups·block) float64 squared norms of the centred rows, 0 where padded.
        constant: every sample has the same activations.
    """

    norms: Tensor
    constant: bool

    def __init__(
        self, representation: Representation, plan: Plan, *, keep: bool, device: torch.device
    ) -> None:
        self.representation = representation
        self.plan = plan
        self.device = device
        self._order = [torch.from_numpy(order).to(device) for order in plan.order]
        self._padded = [torch.from_numpy(np.flatnonzero(p)).to(device) for p in plan.padded]
        self._keep = keep
        self._tiles: dict[int, Tensor] = {}
        self._prepared = False

    def prepare(self) -> None:
        """Find the means and the norms; at the first call only.

        Raises:
            UserError: NaN, infinity or numbers beyond the products' range, naming the sample.
        """
        if self._prepared:
            return
        self._prepared = True
        count = len(self.plan.tiles)
        groups = (self.plan.groups, self.plan.block, -1)
        keep = self._keep or count == 1
        values = self._raw(0)
        first = values[0].clone()
        self._rough = values.sum(0) / (self.plan.tiles[0][1] - self.plan.tiles[0][0])
        self._mean = torch.zeros(1, device=self.device)
        sums = torch.zeros(len(first), dtype=torch.float64, device=self.device)
        self.constant = True
        for tile in range(count):
            values = self._raw(tile) if tile else values
            if self.constant:
                same = (values == first).all(1)
                same[self._padded[tile]] = True
                self.constant = bool(same.all())
            values = self._centre(values, tile)
            sums += values.view(groups).sum(1).double().sum(0)
            if keep:
                self._tiles[tile] = values
        self._mean = (sums / self.plan.samples).float()
        for tile, values in self._tiles.items():
            values.sub_(self._mean)[self._padded[tile]] = 0
        self.norms = torch.stack([self._squared_norms(tile) for tile in range(count)])
        if not bool(self.norms.isfinite().all()):
            self._refuse()

    def tile(self, index: int) -> Tensor:
        """Rows of tile `index`, sorted by group; zero where padded."""
        if index in self._tiles:
            return self._tiles[index]
        return self._centre(self._raw(index), index)

    def release(self) -> None:
        """Forget the tiles that were not meant to stay."""
        if not self._keep:
            self._tiles.clear()

    def _raw(self, index: int) -> Tensor:
        """Rows of a tile in order, float32 (float64 from float64), 0 where padded."""
        start, stop = self.plan.tiles[index]
        rows = self.representation.rows(start, stop)
        source = torch.from_numpy(rows if rows.flags.writeable else rows.copy()).to(self.device)
        values = source.index_select(0, self._order[index])
        values = values if values.dtype == torch.float64 else values.float()
        values[self._padded[index]] = 0
        return values

    def _centre(self, values: Tensor, index: int) -> Tensor:
        values = values.sub_(self._rough).float().sub_(self._mean)
        values[self._padded[index]] = 0
        return values

    def _squared_norms(self, index: int) -> Tensor:
        return torch.linalg.vector_norm(self.tile(index), dim=1).double().square()

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
