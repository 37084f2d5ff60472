"""The Gram matrices that a study keeps for its next comparison: those that none uses go."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from repsim.study.stage import Records

FOLDER = "grams"
_CLOCK = 1.0  # seconds by which a file's time may lie before that of the process that touched it


def remove_unused(folder: Path, records: Records) -> list[Path]:
    """Remove what neither of the two comparisons that are done has used; returns the folders.

    Which Gram matrices a comparison needs is known when it runs: it writes them, or, where it finds
    them, gives them the time of the day. So what is older than both of the present comparisons is
    of settings, networks or images that are no longer asked for.

    Args:
        folder: the study's.
        records: of its stages.
    """
    began = []
    for kind in ("compare", "within"):
        stage = records.stages[kind]
        record = records.read(stage) if records.done(stage) else None
        if record is None or "began" not in record:
            return []
        began.append(float(record["began"]))
    found = [
        path for path in sorted((folder / FOLDER).glob("*"))
        if re.fullmatch(r"[0-9a-f]{24}", path.name) and _last_used(path) < min(began) - _CLOCK
    ]  # fmt: skip
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return found


def _last_used(folder: Path) -> float:
    """Seconds since 1970 of the last file that was written or taken, or of the empty folder."""
    return max(path.stat().st_mtime for path in [folder, *folder.glob("*.h5")])
