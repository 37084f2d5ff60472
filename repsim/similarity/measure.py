"""What a measure is: something that compares all representations, or a plain function of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.declaration import RIGID, Declaration
from repsim.similarity.estimate import GROUPS, MEMORY, Pairs, cka_pairs
from repsim.similarity.gram import Progress
from repsim.similarity.prepared import PreparedMeasure
from repsim.similarity.representation import Representation, describe


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


@dataclass(frozen=True)
class CKA:
    """Centred kernel alignment; see `cka_pairs`. All pairs cost one matrix product.

    Attributes:
        estimator: debiased, biased or minibatch, unless the caller of `pairs` says another.
        kernel: linear, rbf or rbf:FRACTION, likewise.
        batch_size: of the minibatch estimator, likewise.
    """

    estimator: str = "debiased"
    kernel: str = "linear"
    batch_size: int | None = None

    declaration: ClassVar[Declaration] = Declaration(
        "more alike", -1, 1, True, RIGID, "gram", "n²·p + n²",
        "Kornblith et al. 2019, arXiv 1905.00414; Nguyen et al. 2021, arXiv 2010.15327",
    )  # fmt: skip

    @property
    def name(self) -> str:
        """The estimator and the kernel are recorded beside it."""
        return "cka"

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
            representations, estimator=estimator or self.estimator, kernel=kernel or self.kernel,
            groups=groups, batch_size=batch_size or self.batch_size, memory=memory, device=device,
            progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class Pairwise:
    """A measure from a function (X, Y) -> float of two arrays (samples, features).

    The function gets numpy arrays in the type in which the activations are stored, once for each
    ordered pair: it need not be symmetric.

    Attributes:
        function: (X, Y) -> float.
        name: how results call it.
        intervals: call it again on what each jackknife group leaves.
    """

    function: Callable[[np.ndarray, np.ndarray], Any]
    name: str
    intervals: bool = False

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
        """The wanted pairs one by one; nan elsewhere.

        Raises:
            UserError: the function fails or returns something that is not a number, differing
                samples, or options that only CKA has.
        """
        return _Called(self.function, self.name).pairs(
            representations, wanted=wanted, estimator=estimator, kernel=kernel,
            groups=groups if self.intervals else 1, batch_size=batch_size, memory=memory,
            device=device, progress=progress,
        )  # fmt: skip


@dataclass(frozen=True)
class _Called(PreparedMeasure[tuple[str, np.ndarray], tuple[str, np.ndarray]]):
    """Activations as they are stored, and the caller's function."""

    function: Callable[[np.ndarray, np.ndarray], Any]
    label: str

    declaration = Declaration(
        "more alike", -np.inf, np.inf, False, frozenset(), "activations", "", ""
    )

    @property
    def name(self) -> str:
        """The caller's."""
        return self.label

    def settings(self) -> dict[str, Any]:
        """None that are known."""
        return {}

    def attributes(self) -> dict[str, Any]:
        """Nothing is known of what it means."""
        return {}

    def least(self) -> int:
        """The function may refuse what it cannot do."""
        return 1

    def room(self, samples: int, features: int) -> int:
        """Activations in float32, twice where some samples are left out."""
        return 8 * samples * features

    def fetch(self, one: Representation, device: torch.device) -> tuple[str, np.ndarray]:
        """All rows."""
        return describe(one), np.asarray(one.rows(0, one.samples))

    def prepare(
        self, source: tuple[str, np.ndarray], stay: Tensor | None, samples: int
    ) -> tuple[str, np.ndarray]:
        """The rows that stay."""
        name, values = source
        return name, values if stay is None else values[stay.cpu().numpy()]

    def between(self, x: tuple[str, np.ndarray], y: tuple[str, np.ndarray]) -> float:
        """Call it."""
        try:
            return float(self.function(x[1], y[1]))
        except Exception as error:
            raise UserError(
                f"the measure {self.name} expects to return a number for two arrays "
                f"(samples, features); with {x[0]} and {y[0]} it failed with "
                f"{type(error).__name__}: {error}"
            ) from error

    def summed_up(self, pairs: int, runs: int) -> list[str]:
        """How often the function was called."""
        if runs == 1:
            return [f"{self.name} was called once for each of {pairs} pairs; it has no intervals"]
        return [f"{self.name} was called {runs} times for each of {pairs} pairs"]
