"""Figures to files: written beside and renamed, so that no half of one stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from repsim.errors import UserError
from repsim.files import writer

PNG_DPI = 300
VECTOR_DPI = 600  # of the images inside: seven dots for each of 150 layers in a small panel

# Without dates and with fixed ids the same figure gives the same bytes.
_METADATA: dict[str, dict[str, None]] = {
    ".png": {},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}
# TrueType fonts: publishers refuse matplotlib's default Type 3.
_SETTINGS: Any = {"pdf.fonttype": 42, "svg.hashsalt": "repsim"}


def save_figure(fig: Figure, path: str | Path) -> Path:
    """Write a figure as png (300 dpi), pdf or svg, by the path's suffix.

    Args:
        fig: the figure, at its own size in inches.
        path: where to; a file that is there is replaced once the new one is complete.

    Returns:
        The path.

    Raises:
        UserError: a suffix of another format, or a folder that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        raise UserError(
            f"a figure's file expects one of {', '.join(_METADATA)}; got {path.name!r}; "
            f"try {path.stem or 'figure'}.png"
        )
    part = path.with_name(f".{path.name}.{writer()}.part")
    try:
        with mpl.rc_context(_SETTINGS):
            dpi = PNG_DPI if suffix == ".png" else VECTOR_DPI
            fig.savefig(part, format=suffix[1:], dpi=dpi, metadata=_METADATA[suffix])
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            "give --out a file in a folder that is there and can be written"
        ) from error
    finally:
        if part.exists():
            part.unlink()
    return path
