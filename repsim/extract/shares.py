"""Which rows go to which file: one file as a rule, or parts beside it that the file stands for.

Several processes cannot write one HDF5 file, so each writes parts of its own,
`X.parts/setN.partI-of-K.h5`; once all are finished, `X` gets virtual data sets over them. What one
request adds to a store is one set. Everything in that folder which `X` does not refer to is
unfinished work, or remains of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from repsim.errors import UserError
from repsim.extract.request import unfinished_changes
from repsim.store import Part, Piece, described, parts_of

# A compressed file that was cut off is made again: in parts of this size, at most so much is lost.
# Each part is an open file for whoever reads the store.
_COMPRESSED_PART = 1 << 30
_MOST_PARTS = 200
_NAME = re.compile(r"set(\d+)\.part(\d+)-of-(\d+)\.h5(\.part)?")


@dataclass(frozen=True)
class Share:
    """Rows start to stop of the data.

    Attributes:
        path: the file that they end in.
        start, stop: the rows.
        written: how many of them are there.
        begun: whether there is a file of this work.
    """

    path: Path
    start: int
    stop: int
    written: int
    begun: bool

    @property
    def part(self) -> Path:
        """The file while it is written."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def done(self) -> bool:
        """The part is finished and has its final name."""
        return self.begun and not self.part.exists()


@dataclass(frozen=True)
class Work:
    """How the rows are cut, and what is there of them; made by `settle`, which see.

    Attributes:
        number: of the set of parts; 0 where everything goes to one file.
        bounds: rows at which shares begin, and the number of rows at the end.
        written: of each share; None where there is no file yet.
        reasons: why a layer is stored in float32, "" for float16; None where nothing was decided.
        taken: bytes on disk.
    """

    number: int
    bounds: list[int]
    written: list[int | None]
    reasons: dict[str, str] | None = None
    taken: int = 0

    def shares(self, out: Path) -> list[Share]:
        """The files of the store `out`."""
        count = len(self.bounds) - 1
        folder = _folder(out)
        return [
            Share(
                folder / f"set{self.number}.part{i}-of-{count}.h5" if self.number else out,
                self.bounds[i],
                self.bounds[i + 1],
                self.written[i] or 0,
                self.written[i] is not None,
            )
            for i in range(count)
        ]


def settle(
    out: Path,
    request: Mapping[str, Any],
    there: Mapping[str, Any],
    todo: Mapping[str, Any],
    *,
    batch_size: int,
    samples: int,
    processes: int,
    compressed_bytes: int,
    overwrite: bool,
) -> Work:
    """What an earlier call left of this same work, or a new cut; removes what cannot be trusted.

    Shares are whole batches: then rows are computed in the batches of a single process, which
    matters in the last bit.

    Args:
        out: the store.
        request: as in `request_json`.
        there: conditions of the finished store, with their attacks.
        todo: conditions to be made, with theirs.
        batch_size: images at once.
        samples: rows.
        processes: how many share the work.
        compressed_bytes: size before compression; 0 without.
        overwrite: throw away unfinished work of another request.

    Raises:
        UserError: there is unfinished work of another request, or of one process where there are
            several now; another process is at it.
    """
    part = out.with_name(out.name + ".part")
    single = _whole(part, request, {**there, **todo}, todo, overwrite)
    if single is not None and processes > 1 and not overwrite:
        raise UserError(
            f"{part}: there is unfinished work of one process; finish it with the same command "
            f"without torchrun, remove that file, or --overwrite; got {processes} processes"
        )
    if single is not None and processes == 1:
        return single
    part.unlink(missing_ok=True)
    used = _used(out)
    number = max((_number(name) for name in used), default=0)
    found = _parts(out, number, request, todo, overwrite)
    if found is not None:
        return found
    batches = -(-samples // batch_size)
    parts = min(_MOST_PARTS, -(-compressed_bytes // _COMPRESSED_PART))
    count = min(batches, max(processes, parts))
    bounds = [min(i * batches // count * batch_size, samples) for i in range(count + 1)]
    number = 0 if processes == count == 1 else number + 1
    return Work(number, bounds, [None] * count)


def publish(
    out: Path,
    shares: Sequence[Share],
    extend: bool,
    attrs: Mapping[str, Any],
    samples: Mapping[str, np.ndarray],
) -> None:
    """Give `out` virtual data sets over finished parts.

    Args:
        out: the store.
        shares: all of the set.
        extend: add them to the store that is there.
        attrs, samples: as `Part.create` takes them.
    """
    folder = _folder(out).name
    pieces = [Piece(f"{folder}/{share.path.name}", share.start, share.stop) for share in shares]
    with h5py.File(shares[0].path, "r") as first:
        conditions = described(first)
    beside = out.with_name(out.name + ".join")
    beside.unlink(missing_ok=True)
    if extend:
        part = Part.extend(beside, out, conditions, pieces)
    else:
        part = Part.create(beside, attrs, samples, conditions, pieces)
    part.mark([condition.name for condition in conditions], shares[-1].stop)
    part.finish(out)


def tidy(out: Path) -> None:
    """Remove parts that the finished store does not refer to, and their folder if it is empty."""
    used = _used(out)
    for path in _files(out):
        if path.name not in used:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        _folder(out).rmdir()


def discard(shares: Sequence[Share]) -> None:
    """Remove a set of parts, also those that other processes are writing."""
    for share in shares:
        share.path.unlink(missing_ok=True)
        share.part.unlink(missing_ok=True)
    with suppress(OSError):
        shares[0].path.parent.rmdir()


def _whole(
    path: Path,
    request: Mapping[str, Any],
    wanted: Mapping[str, Any],
    todo: Mapping[str, Any],
    overwrite: bool,
) -> Work | None:
    """What `X.part` holds of this work."""
    part = Part.reopen(path)
    if part is None:
        return None
    with closing(part):
        changes = unfinished_changes(part, request, wanted)
        if changes:
            # Killed after a finished store was copied and before it was extended: nothing is lost.
            copy = part.complete and part.request == request
            if not (copy and part.conditions.items() <= wanted.items()) and not overwrite:
                raise _other(path, changes, "that file")
            return None
        written = min(part.written(name) for name in todo)
        return Work(0, [0, part.samples], [written], part.reasons(next(iter(todo))), _taken(path))


def _parts(
    out: Path, current: int, request: Mapping[str, Any], todo: Mapping[str, Any], overwrite: bool
) -> Work | None:
    """What parts of sets after `current` hold of this work."""
    work, written = None, {}
    for path in _files(out):
        if _number(path.name) <= current:
            continue
        part = Part.reopen(path)
        if part is None:
            path.unlink()
            continue
        with closing(part):
            changes = unfinished_changes(part, request, todo)
            if changes and not overwrite:
                raise _other(path, changes, f"the folder {path.parent}")
            if changes:
                path.unlink()
                continue
            taken = _taken(path) + (work.taken if work else 0)
            reasons = part.reasons(next(iter(todo)))
            work = Work(_number(path.name), part.share["bounds"], [], reasons, taken)
            written[part.share["start"]] = min(part.written(name) for name in todo)
    if work is None:
        return None
    return replace(work, written=[written.get(start) for start in work.bounds[:-1]])


def _other(path: Path, changes: str, what: str) -> UserError:
    return UserError(
        f"{path}: there is unfinished work of another request: {changes}; finish it with its own "
        f"command, remove {what}, or --overwrite"
    )


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def _files(out: Path) -> list[Path]:
    """Everything in the folder of parts that has the name of one."""
    folder = _folder(out)
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _used(out: Path) -> set[str]:
    """Names of the parts that the store at `out` refers to, if there is one that can be read."""
    try:
        with h5py.File(out, "r") as file:
            paths = [Path(piece.file) for piece in parts_of(file)]
    except (OSError, ValueError, TypeError):
        return set()
    return {path.name for path in paths if path.parent.name == _folder(out).name}


def _number(name: str) -> int:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1])


def _taken(path: Path) -> int:
    """Bytes on disk; an unfinished file is as long as the finished one, but has holes."""
    return path.stat().st_blocks * 512
