"""What a store looks like: its data sets, their types and their chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Raised with every change after which older files are read wrongly.
SCHEMA = 1
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Column:
    """A data set (samples, *shape) of a condition.

    Attributes:
        shape: of one sample.
        dtype: numpy's name.
        attrs: HDF5 attributes.
    """

    shape: tuple[int, ...]
    dtype: str
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Condition:
    """The group `/conditions/<name>`.

    Attributes:
        name: its name.
        kind: "clean", "control" or "attack".
        attack: what made its inputs, as plain values; None for clean.
        columns: by path below the group, such as `logits` or `layers/layer1.0`.
        made: with what it was computed: versions, device, batch size.
    """

    name: str
    kind: str
    attack: Mapping[str, Any] | None
    columns: Mapping[str, Column]
    made: Mapping[str, Any] = field(default_factory=dict)


def chunk_rows(samples: int, row_bytes: int) -> int:
    """Samples in a chunk: some 1 MiB, and as many chunks as wanted without a nearly empty last."""
    if samples < 1 or row_bytes < 1:
        return 1
    wanted = min(samples, max(1, _CHUNK // row_bytes))
    return math.ceil(samples / math.ceil(samples / wanted))


def stored_bytes(columns: Iterable[Column], samples: int) -> int:
    """Bytes that data sets of these columns take on disk, the last chunk's padding included."""
    total = 0
    for column in columns:
        rows = chunk_rows(samples, column.row_bytes)
        total += math.ceil(samples / rows) * rows * column.row_bytes
    return total
