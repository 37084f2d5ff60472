"""Writing files so that nothing half-written ever stands under a final name."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repsim.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the final name when the block ends well.

    Raises:
        UserError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    check_writable(path)
    beside = path.with_name(f".{path.name}.{writer()}.tmp{path.suffix}")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def writer() -> str:
    """`PID@HOST` of this process, for the name of a file that it is writing."""
    return f"{os.getpid()}@{host()}"


def host() -> str:
    """The name of this machine, in letters, digits and -."""
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "unnamed"


def check_writable(path: str | Path) -> None:
    """Refuse an output path before any work is done for it.

    Raises:
        UserError: the folder does not exist or cannot be written, or the path is a folder.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise UserError(
            f"{path}: expected an existing folder to write to; there is no folder {folder}"
        )
    if path.is_dir():
        raise UserError(f"{path}: expected the name of a file to write; this is a folder")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: the folder {folder} cannot be written; give another")


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
