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
    reliable_sums,
    undefined,
)
from repsim.similarity.gram import Progress
from repsim.similarity.kernels import Kernel
from repsim.similarity.representation import Representation, same_samples
from repsim.similarity.strata import LEAST, classes
from repsim.similarity.subset import in_memory, subset
from repsim.similarity.tiles import assign_groups


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

    With classes of one size it is minibatch CKA (Nguyen et al. 2021) with a batch a class. For the
    jackknife groups see `jackknife_parts`. In simulations with classes alike, the mean standard
    error was .85 to 1.2 times the true one (1.2 where classes have 20 images); where few small
    classes leave fewer than 5 groups, up to 1.6 times, and a note says so.

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
    parts, notes = jackknife_parts([len(rows) for rows in strata], groups, least)
    hsic = np.zeros((groups + 1, len(representations), len(representations)))  # last: of all
    weights, sizes = np.zeros(groups + 1), np.zeros(groups, dtype=np.int64)
    reasons = [""] * len(representations)
    for number, (rows, part) in enumerate(zip(strata, parts, strict=True)):

        def advance(done: int, total: int, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(strata) * total)

        whole = isinstance(part, int)
        sums = reliable_sums(
            [subset(one, rows) for one in representations],
            estimator=estimator, replicates=not whole and groups > 1, kernel=kernel,
            groups=2 if whole else max(2, groups),
            memory=memory, device=device, progress=advance,
        )  # fmt: skip
        reasons = [old or new for old, new in zip(reasons, sums.reasons, strict=True)]
        # A layer that does not vary within a class has HSIC 0 there.
        every = len(rows) * np.nan_to_num(sums.hsic(estimator), nan=0.0)
        hsic[-1] += every
        weights[-1] += len(rows)
        if groups == 1:
            continue
        if isinstance(part, int):
            others = np.arange(groups) != part
            hsic[:-1][others] += every
            weights[:-1][others] += len(rows)
            sizes[part] += len(rows)
            continue
        for own, group in enumerate(part):
            left_out = int((sums.group_of == own).sum())
            n = len(rows) - left_out
            found = sums.hsic(estimator, without=own) if left_out else sums.hsic(estimator)
            hsic[group] += n * np.nan_to_num(found, nan=0.0)
            weights[group] += n
            sizes[group] += left_out
    nothing = hsic.diagonal(axis1=1, axis2=2) <= 0
    hsic[np.broadcast_to(nothing[:, :, None] | nothing[:, None, :], hsic.shape)] = np.nan
    value = normalised(hsic[-1])
    used = (sizes > 0) & (weights[:-1] > 0)
    left = len(labels) - sum(map(len, strata))
    if left:
        notes.append(
            f"within class: {len(np.unique(labels)) - len(strata)} classes of fewer than {least} "
            f"images, {left} images in all, are left out"
        )
    notes += undefined(representations, value, estimator, reasons)
    replicates = normalised(hsic[:-1][used]) if used.sum() > 1 else None
    if replicates is None and groups > 1:
        notes.append("no intervals: the classes are too few and too small to leave some images out")
    elif replicates is not None and len(replicates) < min(5, groups):
        notes.append(
            f"within class: intervals rest on {len(replicates)} groups of classes only and are not "
            "to be relied on; take more images"
        )
    chosen = Kernel.of(kernel)
    attributes: dict[str, Any] = {"estimator": estimator, "kernel": chosen.name}
    if chosen.bandwidth is not None:
        attributes["bandwidth"] = chosen.bandwidth
    attributes |= {"within": "class", "classes": len(strata)}
    return Pairs(value, replicates, sizes[used], attributes, notes)


def jackknife_parts(
    sizes: Sequence[int], groups: int, least: int
) -> tuple[list[int | NDArray[np.int64]], list[str]]:
    """Which jackknife group each class, or each part of it, belongs to.

    A class of a few images has no image to spare: without one of 5, its HSIC has far more variance,
    which the jackknife would take for that of the whole. So classes of fewer than 2·G images are
    left out as a whole, G groups of them, and larger ones lose a G-th. Where that leaves fewer than
    5 groups, smaller classes lose images too, and intervals come out too wide. No class is ever
    left with fewer images than the estimator needs.

    Args:
        sizes: images of each class.
        groups: G.
        least: images that the estimator needs.

    Returns:
        For each class its group, or (G,) the group of each part that `assign_groups` makes of it;
        and notes.
    """
    notes = []
    smallest = max(2 * groups, 3 * least)  # of a class that is parted
    if all(size < smallest for size in sizes) and len(sizes) < min(5, groups):
        smallest = 3 * least
        if any(size >= smallest for size in sizes):
            notes.append(
                "within class: few and small classes, which lose some images each for the "
                "intervals; these are too wide, up to 1.6 times"
            )
    load = np.zeros(groups, dtype=np.int64)
    parts: list[int | NDArray[np.int64]] = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    for number in order:  # the large ones first, the small ones even out what they leave
        if sizes[number] >= smallest:
            counts = np.bincount(assign_groups(sizes[number], groups), minlength=groups)
            part = np.zeros(groups, dtype=np.int64)
            part[np.argsort(-counts, kind="stable")] = np.argsort(load, kind="stable")
            load[part] += counts
            parts[number] = part
        else:
            group = int(load.argmin())
            load[group] += sizes[number]
            parts[number] = group
    return parts, notes
