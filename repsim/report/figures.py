"""Which figures a study has, each with its caption and what it shows in words."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.figure import Figure

from repsim.plot import save_figure
from repsim.plot.layout import ONE_COLUMN

PAD = 0.04  # inches of white around a figure
# Letters as letters: their outlines would be most of a small figure. DejaVu Sans comes with
# matplotlib and most of Linux; Verdana, as wide, with other systems.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "repsim",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
}
# What may stand as it is in a data URI inside an attribute: no quotes, no angle brackets, no &.
_SAFE = " !$()*+,-./:;=?@[]^_`{|}~"


@dataclass(frozen=True)
class Drawn:
    """A figure of the report.

    Attributes:
        name: of its files, figures/NAME.pdf and figures/NAME.png.
        caption: what is drawn, and how to read it.
        alt: what a reader who cannot see it should know.
        svg: the figure as a data URI.
        width: in inches, at its own size.
        height: in inches.
    """

    name: str
    caption: str
    alt: str
    svg: str
    width: float
    height: float


def drawn(name: str, caption: str, alt: str, make: Callable[[], Figure], folder: Path) -> Drawn:
    """Draw a figure, write its files, and keep it for the page.

    Args:
        name: of the files; what a file's name should not hold becomes a hyphen.
        caption: below it.
        alt: for readers who cannot see it.
        make: draws it at its own size.
        folder: for the files.

    Raises:
        UserError: a folder that cannot be written.
    """
    # A network's or scheme's name may hold what a file's name cannot.
    name = re.sub(r"[^\w.-]+", "-", name).strip(".-")
    with mpl.rc_context(_STYLE):
        fig = make()
        engine = fig.get_layout_engine()
        if engine is not None:
            for _ in range(3):  # a legend outside the axes moves with them
                engine.execute(fig)
            fig.set_layout_engine("none")  # laid out once, not again for every format
        for suffix in ("pdf", "png"):
            save_figure(fig, folder / f"{name}.{suffix}")
        buffer = io.BytesIO()
        fig.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True, dpi=200)
    text = small(buffer.getvalue().decode("utf-8"))
    width, height = (float(side) for side in fig.get_size_inches())
    return Drawn(name, caption, alt, f"data:image/svg+xml,{quote(text, safe=_SAFE)}", width, height)


def small(svg: str) -> str:
    """A figure in half the bytes: without comments and metadata, in hundredths of a point."""
    svg = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", "", svg, flags=re.S
    )

    def rounded(hit: re.Match[str]) -> str:
        return " ".join(re.sub(r"(\d\.\d\d)\d+", r"\1", hit[0]).split())

    svg = re.sub(r'(?<=\s)(?:d|x|y|width|height|points)="[^"]*"', rounded, svg)
    svg = re.sub(r"translate\([^)]*\)", rounded, svg)
    return re.sub(r">\s+<", "><", svg).strip()


def alone(draw: Callable[[Any], Any], *, width: float = ONE_COLUMN, height: float = 2.5) -> Figure:
    """A figure of one axes at the width of a paper's column."""
    fig = Figure(figsize=(width, height))
    fig.set_layout_engine("constrained", w_pad=PAD, h_pad=PAD)
    draw(fig.subplots())
    return fig


def words_of(lines: Iterable[tuple[str, Sequence[float]]]) -> str:
    """Curves in words: where each begins and ends."""
    return "; ".join(
        f"{label}: from {values[0]:.2f} to {values[-1]:.2f}" for label, values in lines
    )
