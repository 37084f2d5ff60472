"""What is kept of a layer's output: all of it, its spatial means, or a random projection."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.keyed import keyed_bits, mix_seed

# A projection matrix is made in blocks of this many entries (4 MiB of float32), and at most
# this many entries of all matrices are kept for the next batch (256 MiB).
_BLOCK = 1 << 20
_KEPT = 1 << 26


@dataclass(frozen=True)
class Reduce:
    """A way to turn outputs (batch, *shape) into features (batch, features).

    Attributes:
        kind: "flatten", "avgpool" or "project".
        size: features that a projection leaves; 0 for the others.
    """

    kind: str
    size: int = 0
    _kept: dict[tuple[object, ...], list[Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def text(self) -> str:
        """As it is typed after `--reduce` and recorded in a store."""
        return f"project:{self.size}" if self.kind == "project" else self.kind

    def features(self, shape: tuple[int, ...]) -> int:
        """Features that an output of this per-sample shape leaves."""
        whole = math.prod(shape)
        if self.kind == "avgpool":
            return whole if len(shape) < 2 else shape[1] if len(shape) == 2 else shape[0]
        return min(whole, self.size) if self.kind == "project" else whole

    def __call__(self, outputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Features (batch, features) of outputs (batch, *shape), always in memory of their own.

        flatten: every value, in the order of (C, H, W) whatever the memory layout.
        avgpool: (C, H, W) -> mean over positions (C,); (T, D) -> mean over tokens (D,);
            one-dimensional outputs stay.
        project: x -> x S / √size with independent random signs S (features, size), which leaves
            inner products as they are in expectation (Achlioptas 2003, "Database-friendly
            random projections"). S depends on the output's shape and on size only, so all
            stores agree on it. Outputs of no more features than `size` are flattened.

        Args:
            outputs: (batch, *shape), on any device.
            dtype: of the result. Means and products are computed in float32 before.
        """
        shape = tuple(outputs.shape[1:])
        if self.kind == "avgpool" and len(shape) > 1:
            positions = 1 if len(shape) == 2 else tuple(range(2, outputs.dim()))
            return outputs.float().mean(positions).to(dtype)
        if self.kind == "project" and math.prod(shape) > self.size:
            return self._project(outputs, shape).to(dtype)
        # One pass that copies, converts and undoes channels_last together.
        flat = torch.empty((len(outputs), math.prod(shape)), dtype=dtype, device=outputs.device)
        flat.view(outputs.shape).copy_(outputs)
        return flat

    def _project(self, outputs: Tensor, shape: tuple[int, ...]) -> Tensor:
        # Autocast would do the product in bfloat16.
        with torch.autocast(outputs.device.type, enabled=False):
            flat = outputs.flatten(1).float()
            result = torch.zeros((len(flat), self.size), device=flat.device)
            start = 0
            for block in self._matrix(shape, flat.device):
                result.addmm_(flat[:, start : start + len(block)], block)
                start += len(block)
            return result

    def _matrix(self, shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
        """The rows of S / √size in blocks, remembered while there is room."""
        key = (shape, device)
        if key in self._kept:
            yield from self._kept[key]
            return
        entries = math.prod(shape) * self.size
        room = _KEPT - sum(len(b) * self.size for blocks in self._kept.values() for b in blocks)
        kept: list[Tensor] = []
        rows = max(1, _BLOCK // self.size)
        for start in range(0, math.prod(shape), rows):
            stop = min(start + rows, math.prod(shape))
            block = projection_rows(shape, self.size, start, stop, device)
            if entries <= room:
                kept.append(block)
            yield block
        if kept:
            self._kept[key] = kept


def projection_rows(
    shape: tuple[int, ...], size: int, start: int, stop: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Rows start to stop of the projection for outputs of `shape`: (stop - start, size), ±1/√size.

    A pure function of its arguments: the same on every device and in every release of torch.
    """
    seed = mix_seed(len(shape), *shape, size)
    rows = torch.arange(start, stop, device=device)
    words = keyed_bits(rows, -(-size // 64), seed=seed)  # 64 signs each
    bits = (words[:, :, None] >> torch.arange(64, device=device)) & 1  # (rows, words, 64)
    return (bits.flatten(1)[:, :size] * 2 - 1).float().div_(math.sqrt(size))


def parse_reduce(text: str) -> Reduce:
    """`flatten`, `avgpool` or `project:K`.

    Raises:
        UserError: anything else, or a K that is not a whole number of at least 1.
    """
    if text in ("flatten", "avgpool"):
        return Reduce(text)
    kind, colon, size = text.partition(":")
    if kind == "project" and colon and size.isascii() and size.isdigit() and int(size) >= 1:
        return Reduce(kind, int(size))
    raise UserError(
        f"--reduce expects flatten, avgpool or project:K with a whole number K of at least 1; got "
        f"{text!r}; try project:256"
    )
