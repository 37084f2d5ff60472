"""What inversions look like, and the matrices that come of them."""

from __future__ import annotations

import textwrap
from itertools import takewhile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from repsim.inversion.shared import SharedInvariances

COLUMNS = 10
_WIDTH = 7.0  # inches, of a paper's page
_TEXT = 7
_LEFT = 1.1  # inches for the names of rows
_RIGHT = 0.1
_LETTERS = 18  # of a name that fit there


def inversion_figure(found: SharedInvariances, images: Tensor, columns: int = COLUMNS) -> Figure:
    """Rows of images: the originals, the starts, what each network was inverted to.

    With several networks, below them STIR, inverted-image CKA and plain CKA, row given column.

    Args:
        found: inversions of `images`, of which the first repetition is shown.
        images: the originals, (n, c, h, w) in [0, 1].
        columns: images shown, the first of them.
    """
    columns = min(columns, len(images))
    rows = [("original", images), ("start", found.begun)]
    names = short(found.models)
    rows += [(f"inverted\n{name}", found.inverted[i]) for i, name in enumerate(names)]
    side = (_WIDTH - _LEFT - _RIGHT) / columns
    top = side * len(rows)
    several = len(found.models) > 1
    bottom = 2.4 if several else 0.0
    fig = Figure(figsize=(_WIDTH, top + bottom))
    for i, (name, shown) in enumerate(rows):
        for j in range(columns):
            left, low = (
                (_LEFT + j * side) / _WIDTH,
                (bottom + top - (i + 1) * side) / (top + bottom),
            )
            box = (left, low, side * 0.95 / _WIDTH, side * 0.95 / (top + bottom))
            ax = fig.add_axes(box)
            _show(ax, shown[j])
            if j == 0:
                ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=_TEXT)
    if several:
        matrices = [
            ("STIR (row | column)", found.stir.value),
            ("CKA on images inverted\nfrom the column", found.inverted_cka.value),
            ("CKA, original images", found.cka.value),
        ]
        for i, (title, values) in enumerate(matrices):
            size = 1.45
            left = (_LEFT + i * (_WIDTH - _LEFT - _RIGHT - size) / 2) / _WIDTH
            ax = fig.add_axes((left, 0.5 / (top + bottom), size / _WIDTH, size / (top + bottom)))
            _matrix(ax, values, names, title, named=i == 0)
    return fig


def short(names: list[str]) -> list[str]:
    """Names without the words that all begin with: cifar10-st, cifar10-at -> st, at."""
    first, last = (min(names), max(names)) if len(names) > 1 else ("", "")
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    common = first[: len(same)]
    cut = max(common.rfind(mark) for mark in "-_./ ") + 1
    return ["\n".join(textwrap.wrap(name[cut:], _LETTERS)) for name in names]


def _show(ax: Axes, image: Tensor) -> None:
    """One image (c, h, w), grey where it has one channel."""
    pixels = image.float().cpu().permute(1, 2, 0).numpy()
    if pixels.shape[2] == 1:
        ax.imshow(pixels[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        ax.imshow(pixels[:, :, :3], interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _matrix(ax: Axes, values: np.ndarray, models: list[str], title: str, *, named: bool) -> None:
    """A matrix with its numbers written in, rows from the top."""
    ax.imshow(values, vmin=0, vmax=1, cmap="Greys")
    for (i, j), value in np.ndenumerate(values):
        ink = "white" if value > 0.6 else "black"
        size = _TEXT if len(models) <= 4 else max(3, _TEXT * 4 // len(models))
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=size)
    ax.set_title(title, fontsize=_TEXT)
    ax.set_xticks(range(len(models)), models, rotation=20, ha="right", fontsize=_TEXT - 1)
    ax.set_yticks(range(len(models)), models if named else [], fontsize=_TEXT - 1)
    ax.tick_params(length=0)
