"""Which samples share a Gram matrix: all of them, or those of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repsim.errors import UserError
from repsim.similarity.estimate import ESTIMATORS
from repsim.store import show_bytes

LEAST = 4  # samples of a debiased HSIC


@dataclass(frozen=True)
class Plan:
    """The parts of the samples and the estimator that they allow.

    Attributes:
        parts: (start, stop) of the rows of each Gram matrix.
        estimator: "debiased" or "biased" over all samples, or "minibatch".
        notes: what the user should know of the choice.
    """

    parts: list[tuple[int, int]]
    estimator: str
    notes: list[str]

    @property
    def whole(self) -> bool:
        """Whether one Gram matrix holds all samples."""
        return self.estimator != "minibatch"

    @property
    def size(self) -> int:
        """Samples of each Gram matrix."""
        start, stop = self.parts[0]
        return stop - start


def plan_batches(
    samples: int,
    batch_size: int,
    features: Sequence[int],
    representations: int,
    memory: int,
    estimator: str | None,
) -> Plan:
    """All samples in one Gram matrix where they fit in the memory, else batches.

    Over all samples the activations of one network under one condition, 4·n·Σfeatures bytes, are
    held until its Gram matrices are made, and the packed Gram matrices of all representations,
    2·n²·R bytes, to the end. Batch by batch no activations are held at all.

    Args:
        samples: n.
        batch_size: images that go through a network at once.
        features: columns of each layer of the widest network.
        representations: R, layers × conditions × networks.
        memory: bytes for both.
        estimator: "debiased", "biased", "minibatch", or None to let the memory decide.

    Raises:
        UserError: an unknown estimator, too few samples, or one over all samples for which the
            memory is too small.
    """
    if estimator not in (None, *ESTIMATORS):
        raise UserError(f"estimator expects one of {', '.join(ESTIMATORS)}; got {estimator!r}")
    least = 2 if estimator == "biased" else LEAST
    if samples < least:
        raise UserError(f"the comparison expects at least {least} samples; got {samples}")
    needed = 4 * samples * sum(features) + 2 * samples**2 * representations
    # Of a single batch no activations are held either, and its Gram matrices are the same.
    if estimator != "minibatch" and (needed <= memory or samples <= batch_size):
        return Plan(
            [(0, samples)], estimator or "debiased", _over(samples, representations, memory)
        )
    room = f"{show_bytes(needed)} of memory; --memory allows {show_bytes(memory)}"
    if estimator in ("debiased", "biased"):
        raise UserError(
            f"the {estimator} estimator over all {samples} samples needs {room}; raise it, take "
            "fewer samples or layers, or --estimator minibatch"
        )
    size = min(batch_size, samples)
    if size < LEAST:
        raise UserError(
            f"--batch-size expects at least {LEAST} for minibatch CKA; got {batch_size}"
        )
    count = samples // size
    notes = _over(size, representations, memory)
    if estimator is None:
        notes.append(
            f"minibatch CKA, batches of {size}: over all {samples} samples it would need {room}"
        )
    if samples % size:
        notes.append(
            f"minibatch: {count} batches of {size}; the last {samples % size} of {samples} samples "
            "do not fill a batch and are left out"
        )
    parts = [(i * size, (i + 1) * size) for i in range(count)]
    return Plan(parts, "minibatch", notes)


def _over(size: int, representations: int, memory: int) -> list[str]:
    """What to know where the Gram matrices of a single batch take more than the memory."""
    least = 2 * size**2 * representations
    if least <= memory:
        return []
    return [
        f"the Gram matrices of one batch of {size} take {show_bytes(least)}, more than --memory "
        f"{show_bytes(memory)}; a smaller --batch-size or fewer layers take less"
    ]
