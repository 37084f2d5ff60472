"""Where features come from: a network that runs, a store, or features that are held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, to_float
from repsim.errors import UserError
from repsim.extract.conditions import Batch
from repsim.extract.conditions import Source as Condition
from repsim.hooks import capture
from repsim.probe.reduce import Reduction
from repsim.progress import Progress
from repsim.runtime import Runtime
from repsim.store import Store

Take = Callable[[str, Tensor], None]


class Source(ABC):
    """Features of all layers of one split under some conditions.

    Attributes:
        reductions: by layer, in execution order.
        labels: int64 (n,), on the CPU.
        keys: int64 (n,), of random draws.
        ids: uint64 (n,), of the images.
        kinds: "clean", "control" or "attack" by condition.
        device: where features are.
    """

    reductions: Mapping[str, Reduction]
    labels: Tensor
    keys: Tensor
    ids: np.ndarray
    kinds: Mapping[str, str]
    device: str

    @abstractmethod
    def feed(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """Hand (name, features (batch, used) float32) of some rows to `take`, layer by layer."""


class LiveSource(Source):
    """Of a frozen network as it runs: one forward feeds all layers, nothing is written.

    Attacked images are made once, when they are first asked for, and kept in memory.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: ImageData,
        conditions: Sequence[Condition],
        reductions: Mapping[str, Reduction],
        runtime: Runtime,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self.loaded, self.data, self.runtime = loaded, data, runtime
        self.reductions = reductions
        self.labels, self.keys, self.ids = data.labels, data.keys, data.ids
        self.conditions = {one.name: one for one in conditions}
        self.kinds = {one.name: one.kind for one in conditions}
        self.device = runtime.device
        self.batch_size, self.progress = batch_size, progress
        self._made: dict[str, Tensor] = {}

    def inputs(self, condition: str, rows: Tensor) -> Tensor:
        """Images (batch, c, h, w) as the network takes them."""
        if condition == "clean":
            pixels = self.data.images[rows].to(self.device, non_blocking=True)
            return self.runtime.images(to_float(pixels))
        if condition not in self._made:
            self._made[condition] = self._make(self.conditions[condition])
        return self.runtime.images(self._made[condition][rows])

    def _make(self, condition: Condition) -> Tensor:
        made = []
        what = f"{condition.name} on {self.data.split}"
        with self.progress.task(what, len(self.data), unit="img") as task:
            for start in range(0, len(self.data), self.batch_size):
                stop = min(start + self.batch_size, len(self.data))
                rows = torch.arange(start, stop)
                batch = Batch(
                    start, stop, self.data.images[start:stop], self.inputs("clean", rows),
                    self.labels[rows].to(self.device), self.keys[rows].to(self.device),
                )  # fmt: skip
                made.append(condition.make(batch)[0].detach().float().cpu())
                task.advance(stop - start)
        return torch.cat(made)

    def feed(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """See `Source`."""
        nothing = torch.empty(0)

        def at_once(name: str, output: Tensor) -> Tensor:
            with torch.autocast(output.device.type, enabled=False):
                take(name, self.reductions[name](output))
            return nothing

        images = self.inputs(condition, rows)
        model = self.loaded.model
        with torch.no_grad(), self.runtime.autocast(), capture(model, names, at_once):
            model(images)


class StoredSource(Source):
    """Of a store."""

    def __init__(self, store: Store, reductions: Mapping[str, Reduction], device: str) -> None:
        self.store, self.reductions, self.device = store, reductions, device
        self.labels = torch.from_numpy(store.labels)
        self.ids = store.ids
        self.keys = torch.from_numpy(store.ids.view(np.int64).copy())
        self.kinds = {name: store.kind(name) for name in store.conditions}

    def feed(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """See `Source`."""
        for name in names:
            layer = self.store.representation(condition, name)
            if not _in_order(rows):
                layer, start, stop = layer.reordered(rows.numpy()), 0, len(rows)
            else:
                start, stop = int(rows[0]), int(rows[-1]) + 1
            values = torch.from_numpy(layer.rows(start, stop)).to(self.device)
            reduction = self.reductions[name]
            take(name, reduction(values.view(len(values), *reduction.shape)))


def _in_order(rows: Tensor) -> bool:
    return bool((rows[1:] - rows[:-1] == 1).all())


def stored_shape(shape: tuple[int, ...], features: int) -> tuple[int, ...]:
    """The shape of what a store has of one image: the layer's, or one dimension once reduced."""
    return shape if int(np.prod(shape)) == features else (features,)


class HeldSource(Source):
    """Features of another source, read once and kept."""

    def __init__(
        self, source: Source, names: Sequence[str], conditions: Sequence[str], batch_size: int,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.reductions, self.kinds, self.device = source.reductions, source.kinds, source.device
        self.labels, self.keys, self.ids = source.labels, source.keys, source.ids
        n = len(self.labels)
        self.held: dict[tuple[str, str], Tensor] = {
            (condition, name): torch.empty(n, self.reductions[name].used, device=self.device)
            for condition in conditions
            for name in names
        }
        for condition in conditions:
            for rows in passes(source, condition, batch_size, progress):

                def take(
                    name: str, features: Tensor, rows: Tensor = rows, condition: str = condition
                ) -> None:
                    self.held[condition, name][rows] = features

                source.feed(condition, rows, names, take)
        for (condition, name), features in self.held.items():
            if not bool(features.isfinite().all()):
                raise not_finite(name, condition)

    def feed(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """See `Source`."""
        for name in names:
            take(name, self.held[condition, name][rows])


def passes(source: Source, condition: str, batch_size: int, progress: Progress) -> Any:
    """Rows of each batch of one pass over all images, in order, with progress."""
    n = len(source.labels)
    with progress.task(f"features, {condition}", n, unit="img") as task:
        for start in range(0, n, batch_size):
            rows = torch.arange(start, min(start + batch_size, n))
            yield rows
            task.advance(len(rows))


def not_finite(layer: str, condition: str) -> UserError:
    """The refusal of features that are not finite."""
    return UserError(
        f"layer {layer} ({condition}) expects finite activations; there is NaN or infinity; try "
        "--precision float32, or look at the network's weights"
    )


def not_as_many(what: str, train: Any, test: Any) -> UserError:
    """The refusal of training and test splits that do not belong together."""
    return UserError(
        f"train and test expect the same {what}; got {train} and {test}; extract both with the "
        "same options"
    )


@dataclass(frozen=True)
class Sizes:
    """Bytes that one layer needs while its probes are trained, by the solver."""

    source: Source
    conditions: int
    held_out: int

    def ridge(self, name: str) -> int:
        """Moments or rows, and the validation rows."""
        used, n = self.source.reductions[name].used, len(self.source.labels)
        kept = 8 * used * min(used, n) if n > used else 12 * used * n
        # Of a condition, of a sum of two, of the matrix that is factorised and the factor.
        return self.conditions * kept + 4 * kept + 4 * used * self.held_out * self.conditions

    def held(self, name: str) -> int:
        """All features, and of those of one condition a standardised copy and a temporary."""
        rows = len(self.source.labels) * self.source.reductions[name].used
        return 4 * rows * (self.conditions + 2)

    def descent(self, name: str) -> int:
        """All features."""
        return 4 * len(self.source.labels) * self.source.reductions[name].used * self.conditions


def grouped(names: Sequence[str], size: Callable[[str], int], memory: int) -> list[list[str]]:
    """The layers in groups that fit the memory, in order.

    Raises:
        UserError: a layer that does not fit alone.
    """
    groups: list[list[str]] = []
    filled = 0
    for name in names:
        needed = size(name)
        if needed > memory:
            raise UserError(
                f"layer {name} needs {needed / 2**20:.0f} MiB for its probe; --memory allows "
                f"{memory / 2**20:.0f}; raise it, or leave fewer features: --reduce auto, "
                "--features N"
            )
        if not groups or filled + needed > memory:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += needed
    return groups
