"""What a killed run leaves: files that never got their names."""

from __future__ import annotations

import re
from pathlib import Path

# As `repsim.files.replacing` and `repsim.plot.save_figure` name them.
_BESIDE = re.compile(r"\..+\.\d+\.(tmp.*|part)")


def remove_temporary(folder: Path) -> list[Path]:
    """Remove half-written files of processes that are gone; returns their paths."""
    found = [path for path in folder.rglob(".*") if _BESIDE.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return found
