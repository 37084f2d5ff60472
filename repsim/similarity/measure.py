"""What a measure is: something that compares all representations, or a plain function of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.similarity.estimate import GROUPS, MEMORY, Pairs, cka_pairs
from repsim.similarity.gram import Progress
from repsim.similarity.representation import Representation, describe, same_samples


@runtime_checkable
class Measure(Protocol):
    """Compares all representations at once, so that work for each is done once."""

    @property
    def name(self) -> str:
        """How results and figures call it."""

    def pairs(
        self,
        representations: Sequence[Representation],
        *,
        wanted: NDArray[np.bool_],
        estimator: str | None,
        kernel: str | None,
        groups: int,
        batch_size: int | None,
        memory: int,
        device: str | torch.device,
        progress: Progress | None,
    ) -> Pairs:
        """The similarity of every pair, at least of those in `wanted` (R, R)."""


class CKA:
    """Centred kernel alignment; see `cka_pairs`. All pairs cost one matrix product."""

    name = "cka"

    def pairs(
        self,
        representations: Sequence[Representation],
        *,
        wanted: NDArray[np.bool_],
        estimator: str | None = None,
        kernel: str | None = None,
        groups: int = GROUPS,
        batch_size: int | None = None,
        memory: int = MEMORY,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ) -> Pairs:
        """All pairs, whatever is wanted: leaving some out would save nothing."""
        return cka_pairs(
            representations, estimator=estimator or "debiased", kernel=kernel or "linear",
            groups=groups, batch_size=batch_size, memory=memory, device=device, progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class Pairwise:
    """A measure from a function (X, Y) -> float of two arrays (samples, features).

    The function gets numpy arrays in the type in which the activations are stored, once for each
    ordered pair: it need not be symmetric.
    """

    function: Callable[[np.ndarray, np.ndarray], Any]
    name: str

    def pairs(
        self,
        representations: Sequence[Representation],
        *,
        wanted: NDArray[np.bool_],
        estimator: str | None = None,
        kernel: str | None = None,
        groups: int = GROUPS,
        batch_size: int | None = None,
        memory: int = MEMORY,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ) -> Pairs:
        """The wanted pairs one by one; nan elsewhere, and no intervals.

        Raises:
            UserError: the function fails or returns something that is not a number, differing
                samples, or options that only CKA has.
        """
        if estimator or kernel or batch_size:
            raise UserError(
                f"estimator, kernel and batch_size belong to the measure cka; leave them out with "
                f"the measure {self.name}"
            )
        representations = list(representations)
        samples = same_samples(representations)
        value = np.full(wanted.shape, np.nan)
        total, done = int(wanted.sum()), 0
        kept: dict[int, np.ndarray] = {}

        def load(position: int) -> np.ndarray:
            if position not in kept:
                values = np.asarray(representations[position].rows(0, samples))
                if values.nbytes + sum(other.nbytes for other in kept.values()) > memory:
                    return values
                kept[position] = values
            return kept[position]

        for i in np.flatnonzero(wanted.any(1)).tolist():
            X = load(i)
            for j in np.flatnonzero(wanted[i]).tolist():
                try:
                    value[i, j] = float(self.function(X, load(j)))
                except Exception as error:
                    names = f"{describe(representations[i])} and {describe(representations[j])}"
                    raise UserError(
                        f"the measure {self.name} expects to return a number for two arrays "
                        f"(samples, features); with {names} it failed with "
                        f"{type(error).__name__}: {error}"
                    ) from error
                done += 1
                if progress:
                    progress(done, total)
        note = f"{self.name} was called once for each of {total} pairs; it has no intervals"
        return Pairs(value, None, np.array([], dtype=np.int64), {}, [note])
