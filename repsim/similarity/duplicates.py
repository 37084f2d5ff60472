"""Layers that hold the same numbers: a container and its last child, an identity shortcut.

They are told by content, not by name. A mean over layers counts such activations twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.similarity.grams import GramRepresentation
from repsim.similarity.representation import Representation

_FEW = 8  # rows that tell nearly all layers apart
_ROWS = 128  # rows that are compared at once


def duplicates(
    representations: Sequence[Representation], alike: NDArray[np.bool_] | None = None
) -> list[int | None]:
    """For each the first representation of the same model and condition with equal activations.

    Equal is equal in every number, as stored. Representations of which only inner products are
    known are compared by these.

    Args:
        representations: R.
        alike: (R, R) pairs that may be equal; all where it is not known. Only these are read.

    Returns:
        Positions; None for one that is equal to none before it.
    """
    first: list[int | None] = [None] * len(representations)
    sides: dict[tuple[str, str, int], list[int]] = {}
    for position, one in enumerate(representations):
        sides.setdefault((one.model, one.condition, one.features), []).append(position)
    for members in sides.values():
        if alike is not None:
            members = [i for i in members if alike[i, members].sum() > alike[i, i]]
        if len(members) < 2:
            continue
        found: dict[bytes, list[int]] = {}
        for i in members:
            before = found.setdefault(first_rows(representations[i]), [])
            for j in before:
                maybe = alike is None or bool(alike[i, j])
                if maybe and _equal(representations[j], representations[i]):
                    first[i] = j
                    break
            else:
                before.append(i)
    return first


def without_duplicates(
    representations: Sequence[Representation],
) -> tuple[list[Representation], dict[str, str]]:
    """The representations without layers that are a duplicate under every condition.

    Sides (a model under a condition) of the same layers lose the same ones, so that they can still
    be compared layer by layer.

    Args:
        representations: of any sides, each in the order of its layers.

    Returns:
        Those that stay; and for each layer left out the one that stays in its place.
    """
    keys = [(one.model, one.condition, one.layer) for one in representations]
    kept, dropped = apart(keys, duplicates(representations))
    return [representations[i] for i in kept], dropped


def apart(
    keys: Sequence[tuple[str, str, str]], found: Sequence[int | None]
) -> tuple[list[int], dict[str, str]]:
    """Positions without layers that are a duplicate under every condition of their networks.

    Args:
        keys: (model, condition, layer) of each.
        found: as `duplicates` gives it.

    Returns:
        As `without_duplicates`, with positions.
    """
    sides: dict[tuple[str, str], list[int]] = {}
    for position, (model, condition, _) in enumerate(keys):
        sides.setdefault((model, condition), []).append(position)
    alike_sides: dict[tuple[str, ...], list[list[int]]] = {}
    for members in sides.values():
        names = tuple(keys[i][2] for i in members)
        alike_sides.setdefault(names, []).append(members)
    dropped: dict[str, str] = {}
    kept: list[int] = []
    for names, many in alike_sides.items():
        for place, name in enumerate(names):
            firsts = [found[members[place]] for members in many]
            if any(first is None for first in firsts):
                kept += [members[place] for members in many]
            else:
                dropped[name] = keys[firsts[0] or 0][2]
    return sorted(kept), dropped


def alike(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of R representations are as similar to one another as each is to itself.

    Args:
        values: (R, R) similarities; nan where unknown, which may be anything.

    Returns:
        (R, R), the diagonal included; up to rounding, so more than are equal.
    """
    own = values.diagonal()
    tolerance = 1e-3 * np.abs(values[np.isfinite(values)]).max(initial=0.0)
    other = np.abs(values - own) > tolerance  # False for nan
    return ~(other | other.T | (np.abs(own[:, None] - own) > tolerance))


def first_rows(one: Representation) -> bytes:
    """A digest of the first rows, or of their inner products; 0 and -0 are the same."""
    stop = min(_FEW, one.samples)
    if isinstance(one, GramRepresentation):
        values = np.asarray(one.gram(slice(0, stop), slice(0, stop)))
    else:
        values = np.asarray(one.rows(0, stop))
    return hashlib.blake2b((values + 0.0).tobytes()).digest()


def _equal(a: Representation, b: Representation) -> bool:
    return all(
        x is not None and y is not None and np.array_equal(x, y)
        for x, y in zip_longest(_parts(a), _parts(b))
    )


def _parts(one: Representation) -> Iterator[np.ndarray]:
    """All that is known of a representation, in pieces."""
    for start in range(0, one.samples, _ROWS):
        stop = min(start + _ROWS, one.samples)
        if not isinstance(one, GramRepresentation):
            yield one.rows(start, stop)
            continue
        try:
            yield one.gram(slice(start, stop), slice(0, one.samples))
        except UserError:  # between the batches of a minibatch pass there are no inner products
            for i in range(start, stop):
                yield one.gram(slice(i, i + 1), slice(i, i + 1))
