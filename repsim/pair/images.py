"""The images of a comparison: which are chosen, and how much a similarity hangs on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.progress import Progress, Silent
from repsim.similarity import MEMORY, Representation
from repsim.similarity.influence import influence
from repsim.similarity.strata import LEAST, strata_of
from repsim.similarity.subset import images_among

if TYPE_CHECKING:
    import pandas as pd

Side = tuple[str, str]  # name of the store or network, condition


@dataclass(frozen=True)
class Images:
    """What is known of the images that are compared, in the order of the representations' rows.

    Attributes:
        ids: uint64 (n,) hash of each.
        index: int64 (n,) position in the split.
        labels: int64 (n,).
        right: for clean and attacked sides (n,) whether the network classifies the image
            correctly; only needed to choose among images.
    """

    ids: NDArray[np.uint64]
    index: NDArray[np.int64]
    labels: NDArray[np.int64]
    right: dict[Side, NDArray[np.bool_]] = field(default_factory=dict)


def influence_table(
    rows: Sequence[Representation],
    columns: Sequence[Representation],
    images: Images,
    *,
    within: NDArray[np.int64] | None = None,
    estimator: str | None = None,
    kernel: str | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """What the CKA of each layer with the same layer of the other side becomes without an image.

    Args:
        rows: L representations.
        columns: the same layers of the other side.
        images: their rows.
        within: classes, for CKA within them.
        estimator: as in `compare_all`.
        kernel: as in `compare_all`.
        batch_size: as in `compare_all`.
        memory: bytes that Gram matrices may take.
        progress: told of the work.

    Returns:
        A row an image: `index`, `id`, `label`, for each layer the value without the image minus
        the value, and `mean`, that of their mean over layers; the largest |mean| first.

    Raises:
        UserError: as in `influence`.
    """
    import pandas as pd

    estimator = estimator or "debiased"
    strata = strata_of(len(images.ids), estimator, batch_size=batch_size, labels=within)
    with (progress or Silent()).task("influence", len(rows), unit="layer") as task:
        change = influence(
            rows, columns, strata=strata, estimator=estimator, kernel=kernel or "linear",
            memory=memory, progress=lambda done, total: task.advance(1),
        ).change  # fmt: skip
    defined = ~np.isnan(change).all(0)  # a layer that does not vary is left out of the mean
    table = pd.DataFrame(
        {
            "index": images.index,
            "id": images.ids,
            "label": images.labels,
            **{one.layer: change[:, place] for place, one in enumerate(rows)},
            "mean": change[:, defined].mean(1) if defined.any() else np.full(len(change), np.nan),
        }
    )
    return table.sort_values("mean", key=np.abs, ascending=False, ignore_index=True)


def chosen_images(
    among: str,
    images: Images,
    sides: tuple[Side, Side],
    attacked: Sequence[Side],
    estimator: str | None,
) -> NDArray[np.int64]:
    """The images asked for, as `images_among` defines them for the sides of a pair.

    Args:
        among: `right`, `fooled` or `unfooled`.
        images: all of them.
        sides: the pair.
        attacked: which of them are attacks.
        estimator: decides how many there must be; None is debiased.

    Returns:
        (k,) positions, ascending.

    Raises:
        UserError: too few of them, or nothing to choose by.
    """
    clean = list(dict.fromkeys((model, "clean") for model, _ in sides))
    missing = [side for side in (*clean, *attacked) if side not in images.right]
    if missing:
        raise UserError(
            f"--among {among} expects logits of {':'.join(missing[0])}; its network has no linear "
            "head"
        )
    found = images_among(
        among, [images.right[side] for side in clean], [images.right[side] for side in attacked]
    )
    least = LEAST.get(estimator or "debiased", 4)
    if len(found) < least:
        raise UserError(
            f"--among {among} leaves {len(found)} of {len(images.ids)} images, and the "
            f"{estimator or 'debiased'} estimator expects at least {least}; extract more, or take "
            "another attack"
        )
    return found
