"""One real file in place of a store that is in several, or another compression."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py

from repsim.errors import UserError
from repsim.extract.shares import tidy
from repsim.progress import Progress, Silent
from repsim.store import (
    COMPRESSIONS,
    Column,
    Condition,
    Part,
    described,
    is_large,
    open_store,
    require_space,
    stored_bytes,
)

_BATCH = 128  # rows


def pack(path: str | Path, *, compress: str = "none", progress: Progress | None = None) -> bool:
    """Write a store anew as one file, and remove its parts; the numbers stay as they are.

    The new file is made beside the old one, which takes as much disk again, and then takes its
    name. After a kill the old store is still there.

    Args:
        path: a finished store.
        compress: how images and layers are compressed: "none", "lzf" or "gzip".
        progress: told of every batch.

    Returns:
        Whether there was anything to do.

    Raises:
        UserError: not a store, an unknown compression, or too little disk space.
    """
    if compress not in COMPRESSIONS:
        raise UserError(f"--compress expects {', '.join(COMPRESSIONS)}; got {compress!r}")
    path = Path(path).resolve()
    beside = path.with_name(path.name + ".pack")
    with open_store(path) as store, h5py.File(path, "r") as old:
        there = described(old)
        conditions = [_packed(condition, compress) for condition in there]
        if not store.parts and all(
            kept.compress == condition.columns[name].compress
            for condition, before in zip(conditions, there, strict=True)
            for name, kept in before.columns.items()
        ):
            return False
        if compress == "none":
            columns = [c for condition in conditions for c in condition.columns.values()]
            require_space(path, stored_bytes(columns, len(store)))
        beside.unlink(missing_ok=True)
        own = {"schema", "complete", "ready", "parts"}
        attrs = {name: value for name, value in old.attrs.items() if name not in own}
        samples = {name: dataset[:] for name, dataset in old["samples"].items()}
        part = Part.create(beside, attrs, samples, conditions)
        try:
            total = len(store) * len(conditions)
            with (progress or Silent()).task("pack", total, unit="img") as task:
                for condition in conditions:
                    group = old[f"conditions/{condition.name}"]
                    for start in range(0, len(store), _BATCH):
                        rows = slice(start, min(start + _BATCH, len(store)))
                        part.write(
                            condition.name, start, {n: group[n][rows] for n in condition.columns}
                        )
                        task.advance(rows.stop - rows.start)
            part.mark([condition.name for condition in conditions], len(store))
        except BaseException:
            part.discard()
            raise
    part.finish(path)
    tidy(path)
    return True


def _packed(condition: Condition, compress: str) -> Condition:
    """The same condition compressed so."""

    def column(name: str, old: Column) -> Column:
        return replace(old, compress=compress if is_large(name) else "none", batch=_BATCH)

    columns = {name: column(name, old) for name, old in condition.columns.items()}
    return replace(condition, columns=columns, made={**condition.made, "compress": compress})
