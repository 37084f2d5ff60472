"""Within-class CKA: what two representations share beyond which class an image is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repsim.similarity.estimate import (
    GROUPS,
    MEMORY,
    Pairs,
    normalised,
    similarity_sums,
    undefined,
)
from repsim.similarity.gram import Progress
from repsim.similarity.kernels import Kernel
from repsim.similarity.representation import Representation, same_samples
from repsim.similarity.strata import LEAST, classes
from repsim.similarity.subset import in_memory, subset


def within_class_cka(
    representations: Sequence[Representation],
    labels: NDArray[np.int64],
    *,
    estimator: str = "debiased",
    kernel: str = "linear",
    groups: int = GROUPS,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Pairs:
    """CKA of every pair from Σ_c n_c·HSIC_c over classes c, divided last.

    With classes of one size it is minibatch CKA (Nguyen et al. 2021) with a batch a class. A
    jackknife group is a part of every class.

    Args:
        representations: R, with the same samples in the same order.
        labels: (n,) the class of each sample. Classes of fewer than 4 samples (biased: 2) are left
            out, and a note says so.
        estimator: debiased or biased.
        kernel: as in `hsic_pairs`; an RBF's bandwidth is that of the class.
        groups: jackknife groups; 1 for no replicates.
        memory: as in `similarity_sums`.
        device: as in `similarity_sums`.
        progress: called with the units of work that are done and their number.

    Raises:
        UserError: no class is large enough, and as in `similarity_sums`.
    """
    representations = list(representations)
    samples = same_samples(representations)
    if 8 * samples * sum(one.features for one in representations) <= memory:
        representations = [in_memory(one) for one in representations]  # else read for each class
    least = LEAST[estimator]
    strata = classes(labels, least)
    hsic = np.zeros((groups + 1, len(representations), len(representations)))  # last: of all
    weights, sizes = np.zeros(groups + 1), np.zeros(groups, dtype=np.int64)
    reasons = [""] * len(representations)
    for number, rows in enumerate(strata):

        def advance(done: int, total: int, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(strata) * total)

        sums = similarity_sums(
            [subset(one, rows) for one in representations],
            kernel=kernel, groups=max(2, groups), memory=memory, device=device, progress=advance,
        )  # fmt: skip
        reasons = [old or new for old, new in zip(reasons, sums.reasons, strict=True)]
        counts = np.bincount(sums.group_of, minlength=max(2, groups))
        for group in range(groups + 1):
            left_out = group < groups
            if left_out and groups == 1:
                continue
            n = len(rows) - (int(counts[group]) if left_out else 0)
            if n >= least:
                # A layer that does not vary within a class has HSIC 0 there.
                found = sums.hsic(estimator, without=group if left_out else None)
                hsic[group] += n * np.nan_to_num(found, nan=0.0)
                weights[group] += n
        if groups > 1:
            sizes += counts
    nothing = hsic.diagonal(axis1=1, axis2=2) <= 0
    hsic[np.broadcast_to(nothing[:, :, None] | nothing[:, None, :], hsic.shape)] = np.nan
    value = normalised(hsic[-1])
    used = (sizes > 0) & (weights[:-1] > 0)
    notes = []
    left = len(labels) - sum(map(len, strata))
    if left:
        notes.append(
            f"within class: {len(np.unique(labels)) - len(strata)} classes of fewer than {least} "
            f"images, {left} images in all, are left out"
        )
    notes += undefined(representations, value, estimator, reasons)
    replicates = normalised(hsic[:-1][used]) if used.sum() > 1 else None
    if replicates is None and groups > 1:
        notes.append("no intervals: the classes are too small to leave some images out")
    chosen = Kernel.of(kernel)
    attributes: dict[str, Any] = {"estimator": estimator, "kernel": chosen.name}
    if chosen.bandwidth is not None:
        attributes["bandwidth"] = chosen.bandwidth
    attributes |= {"within": "class", "classes": len(strata)}
    return Pairs(value, replicates, sizes[used], attributes, notes)
