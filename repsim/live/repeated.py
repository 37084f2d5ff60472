"""Layers that hold the same numbers, told batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def digests(packed: Tensor, batch: int) -> NDArray[np.int64]:
    """A number for the content of each row of one batch.

    Those of all batches may be added up in any order, by any process (they wrap around).

    Args:
        packed: (rows, m(m+1)/2) inner products.
        batch: its number.

    Returns:
        (rows,).
    """
    mark = batch.to_bytes(8, "little")
    rows = packed.cpu().numpy()
    found = [hashlib.blake2b(row.data, digest_size=8, salt=mark).digest() for row in rows]
    return np.frombuffer(b"".join(found), dtype="<i8").astype(np.int64)


def first_of(keys: Sequence[tuple[str, str, str]], contents: NDArray[np.int64]) -> list[int | None]:
    """For each the first of its network and condition that has the same content.

    Args:
        keys: (network, condition, layer) of R rows.
        contents: (R,) sums of `digests`.

    Returns:
        Positions; None for one that is the first.
    """
    seen: dict[tuple[str, str, int], int] = {}
    found = []
    for i, ((model, condition, _), content) in enumerate(zip(keys, contents, strict=True)):
        first = seen.setdefault((model, condition, int(content)), i)
        found.append(None if first == i else first)
    return found
