"""HSIC and CKA of all pairs of representations, with what intervals need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.registry import near
from repsim.similarity.covariance import covariance_pays, covariance_sums
from repsim.similarity.gram import Progress, gram_sums
from repsim.similarity.grams import GramRepresentation, batch_of
from repsim.similarity.kernels import Kernel
from repsim.similarity.minibatch import BatchSums
from repsim.similarity.representation import Representation, describe, same_samples
from repsim.similarity.sums import Sums
from repsim.similarity.tiles import plan_tiles

ESTIMATORS = ("debiased", "biased", "minibatch")
GROUPS = 10
MEMORY = 2 * 2**30
BATCH_SIZE = 256
NOT_SEEN = "it has no variation that the {} estimator can see"


@dataclass(frozen=True)
class Pairs:
    """A similarity of every pair of R representations.

    Attributes:
        value: (R, R) float64; nan where it is not defined.
        replicates: (G, R, R) the same without each jackknife group; None where there are none.
        sizes: (G,) samples (minibatch: batches) in each group.
        attributes: how it was computed: estimator, kernel, ...
        notes: what a reader should know.
    """

    value: NDArray[np.float64]
    replicates: NDArray[np.float64] | None
    sizes: NDArray[np.int64]
    attributes: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def similarity_sums(
    representations: Sequence[Representation],
    *,
    kernel: str = "linear",
    groups: int = GROUPS,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Sums:
    """One pass over all pairs of representations; see `Sums`.

    Args:
        representations: R, with the same samples in the same order.
        kernel: `linear`, `rbf` or `rbf:FRACTION` of the median distance.
        groups: jackknife groups.
        memory: bytes on the device that activations and Gram tiles may take. Less memory makes
            smaller tiles and reads the activations more often; the result is the same.
        device: where the products are made.
        progress: called with the units of work that are done and their number.

    Raises:
        UserError: differing samples, activations that are not finite, an unknown kernel.
    """
    return _sums(list(representations), kernel, groups, memory, device, progress)


def reliable_sums(
    representations: Sequence[Representation],
    *,
    estimator: str,
    replicates: bool,
    kernel: str = "linear",
    groups: int = GROUPS,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Sums:
    """`similarity_sums`, made anew in float64 where float32 has lost what an estimator needs.

    That is rare: a sample that outweighs all others together, which U-centring nearly takes away.

    Args:
        representations: as in `similarity_sums`, and so the others.
        estimator: debiased or biased.
        replicates: HSIC without a group will be asked for too.
        kernel: as in `similarity_sums`.
        groups: as in `similarity_sums`.
        memory: as in `similarity_sums`.
        device: as in `similarity_sums`.
        progress: as in `similarity_sums`.

    Raises:
        UserError: as in `similarity_sums`.
    """
    representations = list(representations)
    rest = (kernel, groups, memory, device, progress)
    sums = _sums(representations, *rest)
    unclear = np.flatnonzero(sums.unclear(estimator, replicates=replicates))
    if not len(unclear):
        return sums
    # Few of them, and often nothing at all, such as a layer that is active for one sample.
    alone = _sums([representations[i] for i in unclear], *rest, exact=True)
    nothing = np.isnan(alone.hsic(estimator, scaled=False).diagonal())
    if not nothing.all():
        return _sums(representations, *rest, exact=True)
    reasons = list(sums.reasons)
    for i, reason in zip(unclear, alone.reasons, strict=True):
        reasons[i] = reason or NOT_SEEN.format(estimator)
    return replace(sums, reasons=reasons)


def _sums(
    representations: list[Representation],
    kernel: str,
    groups: int,
    memory: int,
    device: str | torch.device,
    progress: Progress | None,
    *,
    exact: bool = False,
) -> Sums:
    """See `similarity_sums`; exact: the Gram form in float64."""
    samples = same_samples(representations)
    # Of a Gram matrix no activations are read, and none take room.
    features = [
        1 if isinstance(one, GramRepresentation) else one.features for one in representations
    ]
    chosen, device = Kernel.of(kernel), torch.device(device)
    plan = plan_tiles(samples, features, groups, memory // 2 if exact else memory)
    narrow = chosen.name == "linear" and covariance_pays(samples, features, groups, memory)
    known = any(isinstance(one, GramRepresentation) for one in representations)
    if narrow and not exact and not known:
        return covariance_sums(representations, plan, device=device, progress=progress)
    return gram_sums(representations, plan, chosen, device=device, exact=exact, progress=progress)


def hsic_pairs(
    representations: Sequence[Representation],
    *,
    estimator: str = "debiased",
    kernel: str = "linear",
    groups: int = GROUPS,
    batch_size: int | None = None,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Pairs:
    """HSIC of every pair; definitions at `Sums.hsic`.

    Args:
        representations: R, with the same samples in the same order.
        estimator: `debiased`, `biased`, or `minibatch`: the mean over batches of consecutive
            samples of the debiased value (Nguyen et al. 2021); a last batch that is not full is
            left out.
        kernel: `linear`, `rbf` or `rbf:FRACTION` of the median distance (minibatch: of the batch).
        groups: jackknife groups, of samples or (minibatch) of batches; 1 for no replicates. Fewer
            where the samples do not allow so many. An RBF's bandwidth stays that of all samples.
        batch_size: for minibatch; 256 by default, or all samples where there are fewer.
        memory: as in `similarity_sums`.
        device: as in `similarity_sums`.
        progress: as in `similarity_sums`.

    Raises:
        UserError: fewer samples than the estimator needs, an unknown estimator or kernel, and as
            in `similarity_sums`.
    """
    return _hsic(
        list(representations), True, estimator, kernel, groups, batch_size, memory, device, progress
    )


def _hsic(
    representations: list[Representation],
    scaled: bool,
    estimator: str = "debiased",
    kernel: str = "linear",
    groups: int = GROUPS,
    batch_size: int | None = None,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Pairs:
    """See `hsic_pairs`; scaled: as in `Sums.hsic`, but that minibatches are scaled always."""
    samples = same_samples(representations)
    chosen = Kernel.of(kernel)
    if estimator not in ESTIMATORS:
        raise UserError(
            f"estimator expects one of {', '.join(ESTIMATORS)}; got {estimator!r}; near: "
            f"{near(estimator, ESTIMATORS, limit=1)}"
        )
    if groups < 1:
        raise UserError(f"groups expects at least 1 (1: no intervals); got {groups}")
    if batch_size is not None and estimator != "minibatch":
        raise UserError(
            f"batch_size belongs to the minibatch estimator; got {batch_size} with {estimator}; "
            "choose estimator minibatch or leave it out"
        )
    least = 2 if estimator == "biased" else 4
    if samples < least:
        raise UserError(
            f"the {estimator} estimator expects at least {least} samples; got {samples}"
            + ("" if samples < 2 or least == 2 else "; use more, or the biased estimator")
        )
    attributes: dict[str, Any] = {"estimator": estimator, "kernel": chosen.name}
    if chosen.bandwidth is not None:
        attributes["bandwidth"] = chosen.bandwidth

    if estimator == "minibatch":
        if batch_size is not None and not least <= batch_size <= samples:
            raise UserError(
                f"batch_size expects a number from {least} to {samples}, the number of samples; "
                f"got {batch_size}"
            )
        size = batch_size or min(BATCH_SIZE, samples)
        pairs = _minibatch(
            representations, size, groups,
            kernel=kernel, memory=memory, device=device, progress=progress,
        )  # fmt: skip
        pairs.attributes.update(attributes)
        return pairs

    # A replicate must still have as many samples as the estimator needs.
    wanted, groups = groups, min(groups, samples)
    intervals = wanted > 1 and samples - -(-samples // groups) >= least
    # Without replicates the groups only shape the tiles.
    sums = reliable_sums(
        representations, estimator=estimator, replicates=intervals, kernel=kernel,
        groups=groups if groups > 1 else min(GROUPS, samples),
        memory=memory, device=device, progress=progress,
    )  # fmt: skip
    value = sums.hsic(estimator, scaled=scaled)
    notes = undefined(representations, value, estimator, sums.reasons)
    replicates = None
    if intervals:
        replicates = np.stack(
            [sums.hsic(estimator, without=group, scaled=scaled) for group in range(groups)]
        )
        replicates[:, np.isnan(value)] = np.nan
        if groups < wanted:
            notes.append(f"{groups} jackknife groups, one a sample, instead of {wanted}")
    elif wanted > 1:
        notes.append(f"no intervals: {samples} samples are too few to leave some out")
    attributes["form"] = sums.form
    if sums.exact:
        attributes["precision"] = "float64"
    return Pairs(value, replicates, np.bincount(sums.group_of), attributes, notes)


def cka_pairs(representations: Sequence[Representation], **options: Any) -> Pairs:
    """CKA of every pair, HSIC(K, L)/√(HSIC(K, K)·HSIC(L, L)); options as in `hsic_pairs`.

    Minibatch: the three HSICs are averaged over batches first and divided last. Never clamped: a
    debiased value can be below 0.
    """
    pairs = _hsic(list(representations), False, **options)
    return Pairs(
        value=normalised(pairs.value),
        replicates=None if pairs.replicates is None else normalised(pairs.replicates),
        sizes=pairs.sizes,
        attributes=pairs.attributes,
        notes=pairs.notes,
    )


def normalised(hsic: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., R, R) HSIC to CKA."""
    norm = np.sqrt(np.diagonal(hsic, axis1=-2, axis2=-1))
    return np.asarray(hsic / (norm[..., :, None] * norm[..., None, :]))


def _minibatch(
    representations: list[Representation],
    size: int,
    groups: int,
    *,
    progress: Progress | None,
    **options: Any,
) -> Pairs:
    """Means over batches. A layer that does not vary within a batch has HSIC 0 there."""
    samples = representations[0].samples
    batches = samples // size
    totals = BatchSums(len(representations), batches, groups)
    reasons = [""] * len(representations)
    for batch in range(batches):
        rows = [batch_of(one, batch * size, (batch + 1) * size) for one in representations]

        def advance(done: int, total: int, batch: int = batch) -> None:
            if progress:
                progress(batch * total + done, batches * total)

        sums = reliable_sums(
            rows, estimator="debiased", replicates=False, groups=min(GROUPS, size),
            progress=advance, **options,
        )  # fmt: skip
        totals.add(batch, np.nan_to_num(sums.hsic("debiased"), nan=0.0))
        reasons = [old or new for old, new in zip(reasons, sums.reasons, strict=True)]
    notes = []
    if samples % size:
        notes.append(
            f"minibatch: {batches} batches of {size}; the last {samples % size} of {samples} "
            "samples do not fill a batch and are left out"
        )
    value, replicates = totals.value(), totals.replicates()
    notes += undefined(representations, value, "minibatch", reasons)
    notes += few_groups(replicates, batches)
    attributes = {"batch_size": size, "batches": batches}
    return Pairs(value, replicates, totals.sizes, attributes, notes)


def few_groups(replicates: NDArray[np.float64] | None, batches: int) -> list[str]:
    """What to know about minibatch intervals that rest on few batches."""
    if replicates is None:
        return ["no intervals: they need several batches and groups"]
    if len(replicates) < 5:
        return [
            f"intervals rest on {batches} batches only and are not to be relied on; take more "
            "samples or a smaller --batch-size"
        ]
    return []


def undefined(
    representations: Sequence[Representation],
    value: NDArray[np.float64],
    estimator: str,
    reasons: Sequence[str] = (),
) -> list[str]:
    """A note for every representation without a similarity, with the reason where it is known."""
    known = dict(enumerate(reasons))
    return [
        f"{describe(one)} is nan: " + (known.get(position) or NOT_SEEN.format(estimator))
        for position, one in enumerate(representations)
        if np.isnan(value[position, position])
    ]
