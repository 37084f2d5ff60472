"""Writing a store so that the process may be killed at any moment.

HDF5 has no journal: a process that dies while metadata are written leaves a file that may not
open. So all data sets of `X.part` are made at their final size first, with all their chunks
allocated, and the file is marked as ready and synced. From then on only the bytes inside chunks
change. Rows count as written once a counter says so, which is written after they were synced.

Compressed chunks have no size beforehand, so a file with such is ready when it is complete, and
one that was cut off is made again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from repsim.errors import UserError
from repsim.store.layout import SCHEMA, Column, Condition, Piece, filters

# Format 1.8 has checksums on metadata. Newer ones mark the file as open for writing and refuse
# to open it again after a kill.
_FORMAT = ("v108", "v110")
_WRITTEN = "written"


class DiskFull(UserError):
    """The disk ran full while a store was written; what was marked as written stays good."""


class Part:
    """An unfinished store `X.part`, ready for rows; hold one at a time for a file.

    Made by `create` or `extend`, opened again by `reopen`. HDF5's lock keeps a second process out.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file

    @classmethod
    def create(
        cls,
        path: Path,
        attrs: Mapping[str, Any],
        samples: Mapping[str, np.ndarray],
        conditions: Sequence[Condition],
        pieces: Sequence[Piece] = (),
    ) -> Part:
        """A new file with all its data sets.

        Args:
            path: the file, which must not exist.
            attrs: root attributes; those that are not numbers or text are written as JSON.
            samples: data sets of `/samples`, each with one row a sample.
            conditions: what `/conditions` gets.
            pieces: other files that hold the rows of all these data sets, which are then virtual.

        Raises:
            UserError: another process is making the same file.
        """
        try:
            file = h5py.File(path, "x", libver=_FORMAT)
        except FileExistsError as error:
            raise _busy(path) from error
        with _removed_on_error(path):
            with file:
                file.attrs.update(schema=SCHEMA, complete=False, ready=False)
                for name, value in attrs.items():
                    file.attrs[name] = _plain(value)
                for name, values in samples.items():
                    file[f"samples/{name}"] = values
                _add(file, len(next(iter(samples.values()))), conditions, pieces)
            return cls._seal(path, conditions)

    @classmethod
    def extend(
        cls,
        path: Path,
        finished: Path,
        conditions: Sequence[Condition],
        pieces: Sequence[Piece] = (),
    ) -> Part:
        """A copy of a finished store with further conditions; the store itself is only read."""
        # A kill during the copy leaves a file that is cut short, a kill after it a plain copy:
        # both are recognised by whoever reopens them.
        with _removed_on_error(path):
            shutil.copyfile(finished, path)
            _sync(path)
            with _open(path) as file:
                file.attrs["ready"] = False
                file.attrs["complete"] = False
            _sync(path)
            with _open(path) as file:
                _add(file, len(file["samples/id"]), conditions, pieces)
            return cls._seal(path, conditions)

    @classmethod
    def _seal(cls, path: Path, conditions: Iterable[Condition]) -> Part:
        """Mark as ready what is safely on disk, and open it for its rows."""
        _sync(path)
        fixed = all(c.compress == "none" for made in conditions for c in made.columns.values())
        with _open(path) as file:
            file.attrs["ready"] = fixed
        _sync(path)
        _sync(path.parent)
        return cls(path, _open(path))

    @classmethod
    def reopen(cls, path: Path) -> Part | None:
        """What an earlier process left, or None where nothing of it can be trusted.

        Raises:
            UserError: another process is writing it.
        """
        if not path.exists():
            return None
        try:
            file = _open(path)
        except BlockingIOError as error:
            raise _busy(path) from error
        except OSError:
            return None
        try:
            part = cls(path, file)
            if file.attrs["schema"] == SCHEMA and file.attrs["ready"]:
                for name in part.conditions:
                    part.written(name)
                return part
        except (KeyError, OSError, RuntimeError, ValueError):
            pass
        file.close()
        return None

    @property
    def complete(self) -> bool:
        """Everything is written; only the final name is missing."""
        return bool(self._file.attrs["complete"])

    @property
    def request(self) -> Any:
        """The request that the file was made for."""
        return json.loads(self._file.attrs["request"])

    @property
    def conditions(self) -> dict[str, Any]:
        """The attack (None for clean) of each condition."""
        groups = self._file["conditions"]
        return {name: json.loads(group.attrs["attack"]) for name, group in groups.items()}

    @property
    def share(self) -> Any:
        """Of a store that is in several files, the rows in this one; see `shares`."""
        return json.loads(self._file.attrs["share"])

    @property
    def samples(self) -> int:
        """Number of rows."""
        return len(self._file["samples/id"])

    def reasons(self, condition: str) -> dict[str, str]:
        """Why layers are stored in float32, "" for float16, by layer."""
        group = self._file[f"conditions/{condition}/layers"]
        layers: list[str] = json.loads(self._file.attrs["layers"])
        return {layer: str(group[layer].attrs["reason"]) for layer in layers}

    def written(self, condition: str) -> int:
        """Rows of a condition that are safely on disk."""
        return int(self._file[f"conditions/{condition}/{_WRITTEN}"][0])

    def write(self, condition: str, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Rows from `start` on of data sets of a condition.

        Raises:
            DiskFull: the disk is full.
        """
        try:
            for name, values in rows.items():
                self._file[f"conditions/{condition}/{name}"][start : start + len(values)] = values
        except OSError as error:
            raise self._failed(error) from error

    def mark(self, conditions: Iterable[str], rows: int) -> None:
        """Say that the first `rows` rows of these conditions are written, once they are synced.

        Raises:
            DiskFull: the disk is full.
        """
        try:
            self._flush()
            for name in conditions:
                self._file[f"conditions/{name}/{_WRITTEN}"][0] = rows
            self._flush()
        except OSError as error:
            raise self._failed(error) from error

    def finish(self, final: Path) -> None:
        """Give the file its final name."""
        self._flush()  # all of a compressed file's chunks, before it says that it is ready
        self._file.attrs["ready"] = True
        self._file.attrs["complete"] = True
        self._flush()
        self._file.close()
        os.replace(self.path, final)
        _sync(final.parent)

    def close(self) -> None:
        """Leave the file for a later process."""
        with suppress(OSError, RuntimeError):  # after a full disk HDF5 fails once more here
            self._file.close()

    def discard(self) -> None:
        """Remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._file.flush()
        _sync(self.path)

    def _failed(self, error: OSError) -> Exception:
        if error.errno != errno.ENOSPC:
            return error
        return DiskFull(
            f"{self.path}: the disk is full; free some space and give the same command again, "
            "which continues"
        )


def require_space(path: Path, needed: int) -> None:
    """Refuse work whose result does not fit on the disk.

    Raises:
        UserError: less than `needed` bytes are free in the path's folder.
    """
    free = free_bytes(path)
    if needed > free:
        raise UserError(
            f"--out {path}: expected {show_bytes(needed)} of free disk space; there are "
            f"{show_bytes(free)}; try fewer --samples, fewer --layers or --reduce avgpool"
        )


def free_bytes(path: Path) -> int:
    """Of the disk that holds the path's folder."""
    return shutil.disk_usage(path.parent).free


def show_bytes(count: int) -> str:
    """`614 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def described(file: h5py.File) -> list[Condition]:
    """What the conditions of a store look like."""
    return [
        Condition(
            name, group.attrs["kind"], json.loads(group.attrs["attack"]), _columns(group),
            json.loads(group.attrs["made"]),
        )
        for name, group in file["conditions"].items()
    ]  # fmt: skip


def _columns(group: h5py.Group) -> dict[str, Column]:
    found: dict[str, Column] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name != _WRITTEN:
            attrs = dict(item.attrs)
            found[name] = Column(item.shape[1:], item.dtype.name, attrs, item.compression or "none")

    group.visititems(visit)
    return found


def _add(
    file: h5py.File,
    samples: int,
    conditions: Iterable[Condition],
    pieces: Sequence[Piece] = (),
) -> None:
    if pieces:
        parts = [*json.loads(file.attrs.get("parts", "[]")), *(asdict(piece) for piece in pieces)]
        file.attrs["parts"] = json.dumps(parts)
    for condition in conditions:
        group = file.create_group(f"conditions/{condition.name}")
        group.attrs["kind"] = condition.kind
        group.attrs["attack"] = _plain(condition.attack)
        group.attrs["made"] = _plain(condition.made)
        for name, column in condition.columns.items():
            if pieces:
                _create_virtual(group, name, samples, column, pieces)
            else:
                _create(group, name, samples, column)
        _create(group, _WRITTEN, 1, Column((), "int64"))
        group[_WRITTEN][0] = 0


def _create(group: h5py.Group, name: str, samples: int, column: Column) -> None:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if column.compress == "none":
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dataset = group.create_dataset(
        name, (samples, *column.shape), column.dtype, dcpl=layout, **filters(column, samples)
    )
    dataset.attrs.update({key: _plain(value) for key, value in column.attrs.items()})


def _create_virtual(
    group: h5py.Group, name: str, samples: int, column: Column, pieces: Sequence[Piece]
) -> None:
    layout = h5py.VirtualLayout((samples, *column.shape), column.dtype)
    for piece in pieces:
        # HDF5 takes these names for printf's formats.
        file, path = (text.replace("%", "%%") for text in (piece.file, f"{group.name}/{name}"))
        layout[piece.start : piece.stop] = h5py.VirtualSource(
            file, path, (piece.stop - piece.start, *column.shape)
        )
    dataset = group.create_virtual_dataset(name, layout)
    dataset.attrs.update({key: _plain(value) for key, value in column.attrs.items()})


def _plain(value: Any) -> Any:
    """What HDF5 has as an attribute: numbers and text as they are, everything else as JSON."""
    return value if isinstance(value, int | float | str) else json.dumps(value, sort_keys=True)


def _open(path: Path) -> h5py.File:
    # Without a chunk cache a write goes to its chunk at once; a batch is no small write.
    return h5py.File(path, "r+", libver=_FORMAT, rdcc_nbytes=0)


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Have the disk confirm a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _busy(path: Path) -> UserError:
    return UserError(f"{path}: another process is writing it; wait for it, or choose another --out")
