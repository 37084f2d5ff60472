"""Layers against layers: a labelled matrix with intervals, and the numbers that sum it up.

All layers, conditions and models of a comparison go through one engine pass together
(`compare_all`), whatever matrices and numbers are wanted of them afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import repsim
from repsim.errors import UserError
from repsim.progress import Progress, Silent
from repsim.registry import near
from repsim.result import SCHEMA
from repsim.similarity import (
    CKA,
    MEMORY,
    Measure,
    Pairs,
    Pairwise,
    Representation,
    interval,
    parse_measure,
)
from repsim.similarity.duplicates import alike, apart, duplicates, first_rows
from repsim.similarity.means import far_apart, last_third, mean_over, same_layer
from repsim.similarity.permutation import LEVEL, permutation_null
from repsim.similarity.representation import describe
from repsim.similarity.strata import strata_of
from repsim.similarity.within import within_class_cka
from repsim.store import match_rows

if TYPE_CHECKING:
    import xarray as xr

Side = str | tuple[str, str]  # a condition, where there is one model only, or (model, condition)
Key = tuple[str, str, str]  # model, condition, layer


@dataclass(frozen=True)
class AllPairs:
    """Every representation against every other; made by `compare_all`.

    Attributes:
        keys: (model, condition, layer) of each.
        samples: number of samples.
        measure: its name.
        pairs: similarities and jackknife replicates.
        duplicate_of: for each the position of the first of its model and condition that has
            equal activations; None for none. None as a whole: they were not compared.
        sample_ids: SHA-256 of the samples' ids in their order; None where they are not known.
    """

    keys: list[Key]
    samples: int
    measure: str
    pairs: Pairs
    duplicate_of: list[int | None] | None = None
    sample_ids: str | None = None

    def matrix(self, x: Side, y: Side) -> xr.Dataset:
        """The result of one side against another: rows x, columns y; see `compare`.

        Args:
            x: a condition such as "clean", or (model, condition) where there are several models.
            y: the same.

        Raises:
            UserError: a side that was not compared.
        """
        return self._dataset(self._of(x), self._of(y))

    def whole(self) -> xr.Dataset:
        """Everything against everything, in the order of `keys`."""
        everything = list(range(len(self.keys)))
        return self._dataset(everything, everything)

    def without_duplicates(self) -> tuple[AllPairs, dict[str, str]]:
        """The same without layers that repeat an earlier one under every condition.

        Returns:
            What stays; and for each layer left out the one that stays in its place.
        """
        if self.duplicate_of is None:
            return self, {}
        kept, dropped = apart(self.keys, self.duplicate_of)
        place = {old: new for new, old in enumerate(kept)}
        cells, replicates = np.ix_(kept, kept), self.pairs.replicates
        pairs = replace(
            self.pairs,
            value=self.pairs.value[cells],
            replicates=None if replicates is None else replicates[:, cells[0], cells[1]],
        )
        firsts = [self.duplicate_of[i] for i in kept]
        return replace(
            self,
            keys=[self.keys[i] for i in kept],
            pairs=pairs,
            duplicate_of=[None if i is None else place.get(i) for i in firsts],
        ), dropped

    def alignment(self, x: Side, y: Side) -> dict[str, Any]:
        """Means of the diagonal of x against y: over all layers, and over the last L//3.

        At least one layer counts as the last third. Layers whose similarity is nan are left out.

        Returns:
            `alignment_mean`, `alignment_last_third`, and each with `_ci` [lower, upper] where the
            measure has intervals; None stands for nan. `_of` [k, n] says that only k of the n
            values are not nan.

        Raises:
            UserError: the two sides do not have the same layers.
        """
        rows, columns = self._of(x), self._of(y)
        ours, theirs = self._layers(rows), self._layers(columns)
        if ours != theirs:
            raise UserError(
                "alignment expects the same layers on both sides; "
                f"got {len(ours)} and {len(theirs)} layers, {ours[-1]} and {theirs[-1]} last"
            )
        cells = [(rows[i], columns[j]) for i, j in same_layer(len(ours))]
        last = [(rows[i], columns[j]) for i, j in last_third(len(ours))]
        return {
            **self._mean("alignment_mean", cells),
            **self._mean("alignment_last_third", last),
        }

    def long_range(self, x: Side) -> dict[str, Any]:
        """Mean similarity within one side of layers i, j of L with |i - j| > L/2.

        Returns:
            `long_range` and `long_range_ci`, as in `alignment`; None with a single layer.
        """
        rows = self._of(x)
        return self._mean("long_range", [(rows[i], rows[j]) for i, j in far_apart(len(rows))])

    def _of(self, side: Side) -> list[int]:
        models = list(dict.fromkeys(model for model, _, _ in self.keys))
        if isinstance(side, str):
            if len(models) > 1:
                raise UserError(
                    f"a side expects (model, condition) where there are several models, "
                    f"{', '.join(models)}; got {side!r}"
                )
            side = (models[0], side)
        found = [
            i for i, (model, condition, _) in enumerate(self.keys) if (model, condition) == side
        ]
        if not found:
            sides = list(dict.fromkeys(f"{model}:{condition}" for model, condition, _ in self.keys))
            raise UserError(
                f"a side expects one of those compared; got {':'.join(side)!r}; near: "
                f"{near(':'.join(side), sides)}"
            )
        return found

    def _layers(self, positions: Sequence[int]) -> list[str]:
        return [self.keys[position][2] for position in positions]

    def _mean(self, name: str, cells: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The mean over cells that are not nan, with the jackknife of that mean."""
        mean, ends = mean_over(cells, self.pairs.value, self.pairs.replicates, self.pairs.sizes)
        found: dict[str, Any] = {name: mean}
        if self.pairs.replicates is not None:
            found[f"{name}_ci"] = ends
        defined = sum(not np.isnan(self.pairs.value[cell]) for cell in cells)
        if defined < len(cells):
            found[f"{name}_of"] = [defined, len(cells)]
        return found

    def _dataset(self, rows: list[int], columns: list[int]) -> xr.Dataset:
        import xarray as xr

        cells = np.ix_(rows, columns)
        value, replicates = self.pairs.value[cells], self.pairs.replicates
        variables: dict[str, Any] = {"similarity": (("x", "y"), value)}
        if replicates is not None:
            part = replicates[:, cells[0], cells[1]]
            lower, upper = interval(value, part, self.pairs.sizes)
            variables |= {"lower": (("x", "y"), lower), "upper": (("x", "y"), upper)}
            variables["replicates"] = (("group", "x", "y"), part.astype(np.float32))
            variables["group_size"] = ("group", self.pairs.sizes)
        coordinates = {
            f"{axis}_{word}": (
                axis,
                np.array([self.keys[i][place] for i in positions], dtype=object),
            )
            for axis, positions in (("x", rows), ("y", columns))
            for place, word in ((2, "layer"), (1, "condition"), (0, "model"))
        }
        if self.duplicate_of is not None:
            firsts = ["" if i is None else self.keys[i][2] for i in self.duplicate_of]
            for axis, positions in (("x", rows), ("y", columns)):
                names = np.array([firsts[i] for i in positions], dtype=object)
                coordinates[f"{axis}_duplicate_of"] = (axis, names)
        attributes = self.pairs.attributes
        return xr.Dataset(
            variables,
            coordinates,
            {
                "repsim_schema": SCHEMA,
                "measure": self.measure,
                "estimator": attributes.get("estimator", ""),
                "kernel": attributes.get("kernel", ""),
                "samples": self.samples,
                "notes": json.dumps(self.pairs.notes),
                "summary": json.dumps(self._summary(rows, columns)),
                "provenance": json.dumps(self._provenance()),
            },
        )

    def _summary(self, rows: list[int], columns: list[int]) -> dict[str, Any]:
        """The numbers that a matrix has; none for several models or conditions on a side."""
        sides = [{self.keys[i][:2] for i in positions} for positions in (rows, columns)]
        summary: dict[str, Any] = {"samples": self.samples}
        if len(sides[0]) > 1 or len(sides[1]) > 1:
            return summary
        (x,), (y,) = sides
        if x == y:
            summary |= self.long_range(x)
        elif self._layers(rows) == self._layers(columns):
            summary |= self.alignment(x, y)
        return summary

    def _provenance(self) -> dict[str, Any]:
        return {
            "repsim_version": repsim.__version__,
            **{k: v for k, v in self.pairs.attributes.items() if k not in ("estimator", "kernel")},
            **self._jackknife(),
        }

    def _jackknife(self) -> dict[str, Any]:
        """What the groups are: two results with the same ones can be subtracted group by group."""
        known = self.pairs.attributes
        units = "batches" if "batches" in known else "samples"
        if self.pairs.replicates is None:
            return {"interval": None, "jackknife": None}
        groups = len(self.pairs.sizes)
        return {
            "interval": f"95%, delete-one-group jackknife over {groups} groups of {units}",
            "jackknife": {
                "sample_ids": self.sample_ids,
                "groups": groups,
                "units": f"batches of {known['batch_size']}" if units == "batches" else units,
                "within": known.get("within"),
            },
        }


def compare(
    rows: Sequence[Representation],
    columns: Sequence[Representation],
    *,
    measure: str | Measure | Callable[..., Any] = "cka",
    estimator: str | None = None,
    kernel: str | None = None,
    groups: int = 10,
    batch_size: int | None = None,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    within: NDArray[np.int64] | None = None,
    ids: NDArray[np.uint64] | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The similarity of every row's representation to every column's.

    Arguments and errors as in `compare_all`. The rows of all representations must be the same
    samples in the same order; see `match`.

    Returns:
        Variables `similarity`, and for measures that have intervals `lower`, `upper`: (x, y)
        float64, 95%, never clamped; `replicates` (group, x, y) float32, the values without each
        jackknife group, and `group_size`. Coordinates `x_layer`, `x_condition`, `x_model`,
        `x_duplicate_of` (the earlier layer of the same activations; "" for none) and the same of
        y. Attributes measure, estimator, kernel, samples; notes, summary and provenance as JSON.
        The summary holds the long-range similarity where both sides are the same, and the
        alignment where they differ in model or condition and have the same layers.
    """
    unique = _unique([*rows, *columns] if rows and columns else [])
    place = {key: position for position, key in enumerate(unique)}
    x, y = [place[_key(one)] for one in rows], [place[_key(one)] for one in columns]
    wanted = np.zeros((len(unique), len(unique)), dtype=np.bool_)
    wanted[np.ix_(x, y)] = True
    everything = _pairs(
        unique, wanted, measure=measure, estimator=estimator, kernel=kernel, groups=groups,
        batch_size=batch_size, memory=memory, device=device, within=within, ids=ids,
        progress=progress,
    )  # fmt: skip
    return everything._dataset(x, y)


def compare_all(
    representations: Sequence[Representation],
    *,
    only: Sequence[tuple[Side, Side]] | None = None,
    measure: str | Measure | Callable[..., Any] = "cka",
    estimator: str | None = None,
    kernel: str | None = None,
    groups: int = 10,
    batch_size: int | None = None,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    within: NDArray[np.int64] | None = None,
    ids: NDArray[np.uint64] | None = None,
    progress: Progress | None = None,
) -> AllPairs:
    """Every representation against every other in one pass.

    Args:
        representations: with the same samples in the same order. The same (model, condition,
            layer) given twice is taken once.
        only: the pairs of sides that will be asked for, so that a measure that costs something
            for each pair leaves out the rest; all by default.
        measure: a name in `MEASURES`, `module:object` or `file.py:object`, or the object: a
            `Measure`, or a function (X, Y) -> float of arrays (samples, features), which is
            called once for each pair and has no intervals.
        estimator: debiased (default), biased or minibatch.
        kernel: linear (default), rbf or rbf:FRACTION of the median distance.
        groups: jackknife groups behind the intervals; 1 for none.
        batch_size: for the minibatch estimator.
        memory: bytes that activations and Gram tiles may take.
        device: where the products are made.
        within: (n,) the class of each sample, for CKA within classes; see `within_class_cka`.
        ids: (n,) the samples' ids, so that results of the same samples are known as such.
        progress: told of the work.

    Raises:
        UserError: other samples on one side, too few, activations that are not finite, an unknown
            measure, estimator or kernel.
    """
    unique = _unique(representations)
    wanted = np.ones((len(unique), len(unique)), dtype=np.bool_)
    if only is not None:
        sides = [(model, condition) for model, condition, _ in unique]
        wanted[:] = False
        for x, y in only:
            wanted[np.ix_([one == x for one in sides], [one == y for one in sides])] = True
    return _pairs(
        unique, wanted, measure=measure, estimator=estimator, kernel=kernel, groups=groups,
        batch_size=batch_size, memory=memory, device=device, within=within, ids=ids,
        progress=progress,
    )  # fmt: skip


def with_null(
    result: xr.Dataset,
    rows: Sequence[Representation],
    columns: Sequence[Representation],
    *,
    permutations: int,
    seed: int = 0,
    within: NDArray[np.int64] | None = None,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> xr.Dataset:
    """A result of `compare` beside what chance gives; see `permutation_null`.

    Args:
        result: of CKA.
        rows: the representations of its rows, in order.
        columns: those of its columns.
        permutations: number of draws.
        seed: of the draws.
        within: the classes that the result was made within.
        memory: bytes that the Gram matrices may take.
        device: where the products are made.
        progress: told of the work.

    Returns:
        The result with variables `p` and `null_95` (x, y), and `null_95_max`, one number; the
        summary with the number of cells above both, the provenance with the draws.

    Raises:
        UserError: another measure than CKA, too few permutations, or too little memory.
    """
    if result.attrs["measure"] != "cka":
        raise UserError(f"--permutations belongs to the measure cka; got {result.attrs['measure']}")
    provenance = json.loads(result.attrs["provenance"])
    kernel, estimator = result.attrs["kernel"], result.attrs["estimator"]
    with ExitStack() as stack:
        null = permutation_null(
            rows, columns, permutations=permutations, seed=seed, estimator=estimator,
            strata=strata_of(rows[0].samples, estimator, labels=within,
                             batch_size=provenance.get("batch_size")),
            kernel=f"rbf:{provenance['bandwidth']}" if kernel == "rbf" else kernel,
            memory=memory, device=device,
            progress=_advance(stack, progress or Silent(), "permutations", unit="draw"),
        )  # fmt: skip
    cells = ("x", "y")
    above = null.p <= LEVEL
    summary = json.loads(result.attrs["summary"]) | {
        "permutations": permutations,
        "cells": above.size,
        "cells_above_null_95": int(above.sum()),
        "cells_above_null_95_max": int((null.value > null.null_95_max).sum()),
        "null_95_max": null.null_95_max,
    }
    provenance["null"] = {"permutations": permutations, "seed": seed}
    return result.assign(
        p=(cells, null.p), null_95=(cells, null.null_95), null_95_max=((), null.null_95_max)
    ).assign_attrs(summary=json.dumps(summary), provenance=json.dumps(provenance))


def match(
    ids_a: NDArray[np.uint64], ids_b: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two stores that are the same samples: row index_a[i] of one is index_b[i] of other.

    The order is that of the first. Of images that occur several times, the k-th occurrence in one
    is the k-th in the other.

    Args:
        ids_a: uint64 (n,) sample ids of the first.
        ids_b: uint64 (n,) sample ids of the second.

    Raises:
        UserError: the two do not hold the same samples.
    """
    ids_a, ids_b = (np.asarray(ids, dtype=np.uint64) for ids in (ids_a, ids_b))
    found = match_rows(ids_a, ids_b)
    shared = int((found >= 0).sum())
    if not shared == len(ids_a) == len(ids_b):
        raise UserError(
            f"a comparison expects the same samples in both stores; got {len(ids_a)} and "
            f"{len(ids_b)}, {shared} of them in both; extract both with the same --data, --split "
            "and --samples"
        )
    return np.arange(len(ids_a)), found


def _key(one: Representation) -> Key:
    return one.model, one.condition, one.layer


def _unique(representations: Sequence[Representation]) -> dict[Key, Representation]:
    """Each once, by its names.

    Raises:
        UserError: none, or two that differ under the same names.
    """
    if not representations:
        raise UserError("a comparison expects at least one layer on each side; got none")
    unique: dict[Key, Representation] = {}
    for one in representations:
        first = unique.setdefault(_key(one), one)
        if first is not one and not _same(first, one):
            raise UserError(
                f"a comparison expects different names for different representations; two are "
                f"called {describe(one)}; give the stores or models different names"
            )
    return unique


def _same(a: Representation, b: Representation) -> bool:
    """Whether the first rows agree: enough to tell two networks or conditions apart."""
    if (a.samples, a.features) != (b.samples, b.features):
        return False
    return first_rows(a) == first_rows(b)


def _pairs(
    unique: dict[Key, Representation],
    wanted: NDArray[np.bool_],
    *,
    measure: str | Measure | Callable[..., Any],
    within: NDArray[np.int64] | None,
    ids: NDArray[np.uint64] | None,
    progress: Progress | None,
    **options: Any,
) -> AllPairs:
    chosen = _measure(measure)
    representations = list(unique.values())
    with ExitStack() as stack:
        advance = _advance(stack, progress or Silent(), chosen.name)
        if within is not None:
            pairs = _within(chosen, representations, within, progress=advance, **options)
        else:
            pairs = chosen.pairs(representations, wanted=wanted, progress=advance, **options)
    known = pairs.attributes
    left = known["batches"] * known["batch_size"] if "batches" in known else None
    return AllPairs(
        keys=list(unique),
        samples=left or representations[0].samples,
        measure=chosen.name,
        pairs=pairs,
        duplicate_of=duplicates(representations, alike(pairs.value)),
        sample_ids=None if ids is None else hash_ids(ids),
    )


def _within(
    measure: Measure,
    representations: list[Representation],
    labels: NDArray[np.int64],
    *,
    estimator: str | None,
    kernel: str | None,
    batch_size: int | None,
    **options: Any,
) -> Pairs:
    if not isinstance(measure, CKA):
        raise UserError(f"--within class belongs to the measure cka; got {measure.name}")
    if estimator == "minibatch" or batch_size:
        raise UserError(
            "--within class expects the estimator debiased or biased and no batch size: its "
            f"batches are the classes; got {estimator or 'debiased'}, {batch_size}"
        )
    return within_class_cka(
        representations, labels,
        estimator=estimator or "debiased", kernel=kernel or "linear", **options,
    )  # fmt: skip


def hash_ids(ids: NDArray[np.uint64]) -> str:
    """SHA-256 of sample ids in their order."""
    return hashlib.sha256(np.asarray(ids, dtype="<u8").tobytes()).hexdigest()


def _measure(measure: str | Measure | Callable[..., Any]) -> Measure:
    name = measure if isinstance(measure, str) else getattr(measure, "__name__", "measure")
    if isinstance(measure, str):
        measure = parse_measure(measure)
    if isinstance(measure, Measure):
        return measure
    if not callable(measure):
        raise UserError(
            f"a measure expects a function (X, Y) -> float of arrays (samples, features); {name} "
            f"is {type(measure).__name__}"
        )
    return Pairwise(measure, name)


def _advance(
    stack: ExitStack, progress: Progress, what: str, unit: str = "step"
) -> Callable[[int, int], None]:
    """The engine's (done, total) as a task, which begins when the total is known."""
    advance: Callable[[int], None] | None = None
    before = 0

    def tell(done: int, total: int) -> None:
        nonlocal advance, before
        if advance is None:
            advance = stack.enter_context(progress.task(what, total, unit=unit)).advance
        advance(done - before)
        before = done

    return tell
