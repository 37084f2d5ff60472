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

# What HDF5 and h5py can do without further packages; all of it is lossless.
COMPRESSIONS = ("none", "lzf", "gzip")


@dataclass(frozen=True)
class Column:
    """A data set (samples, *shape) of a condition.

    Attributes:
        shape: of one sample.
        dtype: numpy's name.
        attrs: HDF5 attributes.
        compress: one of COMPRESSIONS.
        batch: rows that are written at once; matters for compressed ones only.
    """

    shape: tuple[int, ...]
    dtype: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    compress: str = "none"
    batch: int = 1

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


@dataclass(frozen=True)
class Piece:
    """Rows start to stop of a store that is in several files, and the file that holds them.

    Attributes:
        file: its path, relative to the folder of the store.
        start, stop: the rows.
    """

    file: str
    start: int
    stop: int


def is_large(column: str) -> bool:
    """Whether a column, by its path below the condition, is worth compressing."""
    return column == "inputs" or column.startswith("layers/")


def filters(column: Column, samples: int) -> dict[str, Any]:
    """Chunks and compression of a column, as `h5py.Group.create_dataset` takes them.

    Measured on CIFAR-10 activations in float16 and attacked images in float32: bytes of equal
    significance side by side (shuffle) make the former smaller and the latter larger, whose values
    are few. gzip above level 1 costs half the speed for 2% of the size.
    """
    if column.compress == "none":
        return {"chunks": (chunk_rows(samples, column.row_bytes), *column.shape)}
    return {
        "chunks": (_compressed_rows(samples, column), *column.shape),
        "compression": column.compress,
        "compression_opts": 1 if column.compress == "gzip" else None,
        "shuffle": np.dtype(column.dtype).itemsize == 2,
    }


def chunk_rows(samples: int, row_bytes: int) -> int:
    """Samples in a chunk: some 1 MiB, and as many chunks as wanted without a nearly empty last."""
    if samples < 1 or row_bytes < 1:
        return 1
    wanted = min(samples, max(1, _CHUNK // row_bytes))
    return math.ceil(samples / math.ceil(samples / wanted))


def _compressed_rows(samples: int, column: Column) -> int:
    """A divisor of the batch if there is a good one.

    A chunk that two batches fill is compressed twice and leaves a hole where it was first.
    """
    wanted = max(1, _CHUNK // max(1, column.row_bytes))
    divisors = [n for n in range(1, min(wanted, column.batch) + 1) if column.batch % n == 0]
    return min(samples, divisors[-1] if 4 * divisors[-1] >= min(wanted, column.batch) else wanted)


def stored_bytes(columns: Iterable[Column], samples: int) -> int:
    """Bytes that data sets of these columns take on disk, the last chunk's padding included.

    Compressed ones take less; how much less is not known before.
    """
    total = 0
    for column in columns:
        rows = chunk_rows(samples, column.row_bytes)
        total += math.ceil(samples / rows) * rows * column.row_bytes
    return total
