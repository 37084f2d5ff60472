"""Measures that prepare each representation once and then compare the prepared ones pair by pair.

The work for a network (its Gram matrix, an eigendecomposition, its neighbours) is done once, never
once per pair, and again on what each jackknife group leaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.declaration import Declaration
from repsim.similarity.estimate import GROUPS, MEMORY, Pairs
from repsim.similarity.exact import exact_gram, recentred
from repsim.similarity.gram import Progress
from repsim.similarity.grams import GramRepresentation
from repsim.similarity.representation import (
    ArrayRepresentation,
    Representation,
    describe,
    same_samples,
)
from repsim.similarity.tiles import assign_groups

Source = TypeVar("Source")
State = TypeVar("State")
Cell = tuple[int, int]

CONSTANT = "constant activations"


@dataclass(frozen=True)
class Undefined:
    """Stands for a representation of which a measure says nothing.

    Attributes:
        reason: after "nan,".
        refused: where no pair at all is defined, the comparison is refused with this reason.
    """

    reason: str
    refused: bool = False


@dataclass(frozen=True)
class PreparedMeasure(ABC, Generic[Source, State]):
    """A measure in three steps: `fetch` and `prepare` of each representation, `between` of two.

    Subclasses are frozen dataclasses; their fields are the measure's settings.
    """

    word: ClassVar[str]  # its name without settings
    declaration: ClassVar[Declaration]

    @property
    def name(self) -> str:
        """As typed after `--measure`: with the settings that are not the defaults."""
        defaults = {field.name: field.default for field in fields(self)}
        given = [f"{k}={v}" for k, v in self.settings().items() if v != defaults[k]]
        return ",".join([self.word, *given])

    def settings(self) -> dict[str, Any]:
        """Its settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @abstractmethod
    def fetch(self, one: Representation, device: torch.device) -> Source:
        """What is read of a representation, once, whatever subsets follow."""

    @abstractmethod
    def prepare(self, source: Source, stay: Tensor | None, samples: int) -> State | Undefined:
        """What pairs need of a representation.

        Args:
            source: from `fetch`.
            stay: positions of the samples to use; None for all.
            samples: their number.
        """

    @abstractmethod
    def between(self, x: State, y: State) -> float:
        """The value of a pair."""

    def least(self) -> int:
        """Samples that the measure needs, whatever the representations."""
        return 3

    def room(self, samples: int, features: int) -> int:
        """Bytes of a fetched and prepared representation, roughly."""
        return 16 * samples**2

    def lack(self, state: State) -> Undefined | None:
        """What some pairs of a prepared representation lack."""
        return None

    def caution(self, x: State, y: State, samples: int) -> str:
        """What a reader of this one value should know; "" for nothing."""
        return ""

    def remark(self, state: State) -> str:
        """What a reader of all values of this representation should know; "" for nothing."""
        return ""

    def check(self, representations: list[Representation]) -> None:
        """Refuse what the measure cannot compare.

        Raises:
            UserError: as the measure's own documentation says.
        """

    def about(self, samples: int) -> list[str]:
        """Notes on every comparison by this measure."""
        if self.declaration.larger == "more alike":
            return []
        return [f"{self.name}: larger means less alike"]

    def summed_up(self, pairs: int, runs: int) -> list[str]:
        """Notes on what was done: so many wanted pairs, so many times."""
        return []

    def __call__(self, X: Any, Y: Any) -> float:
        """The measure of two arrays (samples, features...) of the same samples.

        Returns:
            nan where it is not defined, such as for constant activations.

        Raises:
            UserError: numbers of samples that differ or are too small, NaN or infinity.
        """
        layer = "logits" if self.declaration.needs == "logits" else "{}"
        both = [
            ArrayRepresentation.from_array(array, layer=layer.format(side), model=side)
            for array, side in ((X, "X"), (Y, "Y"))
        ]
        wanted = np.array([[False, True], [False, False]])
        device = X.device if isinstance(X, Tensor) else "cpu"
        return float(self.pairs(both, wanted=wanted, groups=1, device=device).value[0, 1])

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
        """The wanted pairs, nan elsewhere, with jackknife replicates: the work of groups + 1 runs.

        Args:
            representations: R, with the same samples in the same order.
            wanted: (R, R) which values to compute; a symmetric measure computes (i, j) and (j, i)
                once and gives both.
            estimator: none; as for kernel and batch_size.
            kernel: none.
            groups: jackknife groups; 1 for no replicates.
            batch_size: none.
            memory: bytes for what is prepared; with less, representations are prepared again for
                each block of pairs. Two are always kept.
            device: where the products are made.
            progress: called with the preparations and pairs that are done and their number.

        Raises:
            UserError: differing samples or too few of them, activations that are not finite, no
                pair for which the measure is defined, or options that only CKA has.
        """
        if estimator or kernel or batch_size:
            raise UserError(
                f"estimator, kernel and batch_size belong to the measure cka; leave them out with "
                f"the measure {self.name}"
            )
        if groups < 1:
            raise UserError(f"groups expects at least 1 (1: no intervals); got {groups}")
        representations = list(representations)
        samples = same_samples(representations)
        if samples < self.least():
            raise UserError(
                f"the measure {self.name} expects at least {self.least()} samples; got {samples}"
            )
        self.check(representations)
        subsets, notes = self._subsets(samples, groups)
        run = _Run(self, representations, samples, torch.device(device), progress)
        values = run.values(self._cells(wanted), subsets, memory)
        if self.declaration.symmetric:
            values = np.where(np.isnan(values), values.transpose(0, 2, 1), values)
        run.refuse_if_nothing(values[0][wanted])
        replicates = values[1:] if len(subsets) > 1 else None
        sizes = np.array([samples - len(s) for s in subsets[1:] if s is not None], dtype=np.int64)
        return Pairs(
            values[0], replicates, sizes, self.attributes(),
            [
                *self.about(samples), *self.summed_up(int(wanted.sum()), len(subsets)),
                *run.notes(), *notes,
            ],
        )  # fmt: skip

    def attributes(self) -> dict[str, Any]:
        """How it was computed, for the result."""
        return {**self.settings(), "larger": self.declaration.larger}

    def _subsets(
        self, samples: int, groups: int
    ) -> tuple[list[NDArray[np.int64] | None], list[str]]:
        """All samples, then what each jackknife group leaves."""
        wanted, groups = groups, min(groups, samples)
        if groups < 2:
            return [None], []
        if samples - -(-samples // groups) < self.least():
            return [None], [f"no intervals: {samples} samples are too few to leave some out"]
        group_of = assign_groups(samples, groups)
        notes = []
        if groups < wanted:
            notes = [f"{groups} jackknife groups, one a sample, instead of {wanted}"]
        return [None, *(np.flatnonzero(group_of != group) for group in range(groups))], notes

    def _cells(self, wanted: NDArray[np.bool_]) -> list[Cell]:
        if self.declaration.symmetric:
            wanted = np.triu(wanted | wanted.T)
        return [(int(i), int(j)) for i, j in np.argwhere(wanted)]


class _Run:
    """One comparison: what is fetched, prepared and told."""

    def __init__(
        self,
        measure: PreparedMeasure[Any, Any],
        representations: list[Representation],
        samples: int,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.measure = measure
        self.representations = representations
        self.samples = samples
        self.device = device
        self._progress = progress
        self._done = 0
        self._total = 0
        self._undefined: dict[int, Undefined] = {}
        self._remarks: dict[int, str] = {}
        self._cautions: dict[str, int] = {}
        self._pairs = 0

    def values(
        self, cells: list[Cell], subsets: list[NDArray[np.int64] | None], memory: int
    ) -> NDArray[np.float64]:
        """(subsets, R, R), nan outside the cells."""
        count = len(self.representations)
        values = np.full((len(subsets), count, count), np.nan)
        self._pairs = len(cells)
        parts = list(self._parts(cells, memory))
        self._total = len(subsets) * (len(cells) + sum(len(members) for _, members in parts))
        stays = [
            None if subset is None else torch.from_numpy(subset).to(self.device)
            for subset in subsets
        ]
        sources: dict[int, Any] = {}
        for part, members in parts:
            sources = {i: source for i, source in sources.items() if i in members}
            for i in members:
                if i not in sources:
                    sources[i] = self.measure.fetch(self.representations[i], self.device)
            for number, stay in enumerate(stays):
                self._fill(values[number], part, sources, stay, whole=number == 0)
        return values

    def _fill(
        self,
        values: NDArray[np.float64],
        cells: list[Cell],
        sources: dict[int, Any],
        stay: Tensor | None,
        *,
        whole: bool,
    ) -> None:
        samples = self.samples if stay is None else len(stay)
        states = {}
        for i, source in sources.items():
            states[i] = self.measure.prepare(source, stay, samples)
            if whole:
                self._look(i, states[i])
            self._advance()
        for i, j in cells:
            x, y = states[i], states[j]
            if not isinstance(x, Undefined) and not isinstance(y, Undefined):
                values[i, j] = self.measure.between(x, y)
                if whole and (caution := self.measure.caution(x, y, samples)):
                    self._cautions[caution] = self._cautions.get(caution, 0) + 1
            self._advance()

    def _look(self, position: int, state: Any) -> None:
        lack = state if isinstance(state, Undefined) else self.measure.lack(state)
        if lack is not None:
            self._undefined[position] = lack
        elif remark := self.measure.remark(state):
            self._remarks[position] = remark

    def _advance(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)

    def _parts(self, cells: list[Cell], memory: int) -> Iterator[tuple[list[Cell], list[int]]]:
        """Cells, and the representations in them, which fit the memory together."""
        room = [self.measure.room(self.samples, one.features) for one in self.representations]
        used = sorted({i for cell in cells for i in cell})
        limit = memory if sum(room[i] for i in used) <= memory else memory / 2
        blocks: list[list[int]] = [[]]
        for i in used:
            if blocks[-1] and sum(room[k] for k in blocks[-1]) + room[i] > limit:
                blocks.append([])
            blocks[-1].append(i)
        block_of = {i: number for number, block in enumerate(blocks) for i in block}
        parts: dict[Cell, list[Cell]] = {}
        for i, j in cells:
            parts.setdefault((block_of[i], block_of[j]), []).append((i, j))
        for _, part in sorted(parts.items()):
            yield part, sorted({i for cell in part for i in cell})

    def notes(self) -> list[str]:
        """One line a reason, however many representations or pairs it is true of."""
        undefined = {i: f"nan, {lack.reason}" for i, lack in self._undefined.items()}
        cautions = [
            f"{self.measure.name}, {number} of {self._pairs} pairs: {caution}"
            for caution, number in self._cautions.items()
        ]
        return [*self._grouped(undefined), *self._grouped(self._remarks), *cautions]

    def _grouped(self, told: dict[int, str]) -> list[str]:
        notes = []
        for text in dict.fromkeys(told.values()):
            same = [i for i, other in told.items() if other == text]
            more = f" and {len(same) - 1} more" if len(same) > 1 else ""
            notes.append(f"{describe(self.representations[same[0]])}{more}: {text}")
        return notes

    def refuse_if_nothing(self, found: NDArray[np.float64]) -> None:
        """Refuse a comparison of which every value is nan because of what was asked."""
        refused = [i for i, lack in self._undefined.items() if lack.refused]
        if refused and np.isnan(found).all():
            lack = self._undefined[refused[0]]
            raise UserError(
                f"{describe(self.representations[refused[0]])} has no {self.measure.name}: "
                f"{lack.reason}"
            )


def is_constant(kernel: Tensor, source: Tensor) -> bool:
    """Whether a centred Gram matrix of some samples is the rounding error of that of all."""
    return not bool(kernel.diagonal().sum() > 1e-13 * source.diagonal().sum())


@dataclass(frozen=True)
class Inner:
    """The inner products of the samples.

    Attributes:
        kernel: (n, n) float64, centred.
        coarse: it holds float32 numbers: there are no activations to make it of.
    """

    kernel: Tensor
    coarse: bool


class GramMeasure(PreparedMeasure[Inner, State]):
    """A measure for which the inner products of the samples are enough."""

    def fetch(self, one: Representation, device: torch.device) -> Inner:
        """The centred Gram matrix."""
        return Inner(exact_gram(one, device), isinstance(one, GramRepresentation))

    def prepare(self, source: Inner, stay: Tensor | None, samples: int) -> State | Undefined:
        """From the Gram matrix of the samples that stay, centred over them."""
        kernel = source.kernel
        if stay is not None:
            kernel = recentred(kernel[stay][:, stay])
        if is_constant(kernel, source.kernel):
            return Undefined(CONSTANT)
        return self.of_gram(kernel, source.coarse)

    @abstractmethod
    def of_gram(self, kernel: Tensor, coarse: bool) -> State | Undefined:
        """What pairs need.

        Args:
            kernel: a centred Gram matrix (n, n) float64 that is not 0.
            coarse: see `Inner`.
        """
