"""What a killed run leaves: files that never got their names."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from repsim.files import host

# As `repsim.files.replacing` and `repsim.plot.save_figure` name them.
_BESIDE = re.compile(r"\..+\.(?P<pid>\d+)(@(?P<host>[A-Za-z0-9-]+))?\.(tmp.*|part)")
_OLD = 24 * 3600  # seconds without a write after which nobody goes on


def remove_temporary(folder: Path) -> list[Path]:
    """Remove half-written files of processes that are gone; returns their paths.

    A process is gone where it ran on this machine and does so no more, or where its file has not
    been written to for a day. Of one on another machine nothing else can be known.

    Args:
        folder: a study's, which this process has claimed.
    """
    found = [
        path for path in folder.rglob(".*")
        if (named := _BESIDE.fullmatch(path.name)) and _left(path, named)
    ]  # fmt: skip
    for path in found:
        path.unlink(missing_ok=True)
    return found


def _left(path: Path, named: re.Match[str]) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:  # it got its name meanwhile
        return False
    return age > _OLD or (named["host"] == host() and not runs(int(named["pid"])))


def runs(pid: int) -> bool:
    """Whether another process of that number runs on this machine.

    One of this process's own number is gone: in a container a process often gets the number of the
    one before it.
    """
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; no number of a process
        return True
    return True
