"""Where features come from: a network that runs, a store, or features that are held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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
from repsim.hooks.same import Same
from repsim.probe.pieces import Room
from repsim.probe.reduce import Reduction, choose_reduction
from repsim.progress import Progress
from repsim.runtime import Runtime
from repsim.store import Store

Take = Callable[[str, Tensor], None]


class Apart(Exception):
    """Layers that handed on one tensor do not in this batch."""


class Source(ABC):
    """Outputs and features of all layers of one split under some conditions.

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
    def outputs(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """Hand (name, output (batch, *shape)) of some rows to `take`, layer by layer.

        An output is good until `take` returns: what runs next may write over it.

        Raises:
            Apart: layers of `repeats` are not the same in this batch.
        """

    def feed(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """The same of features (batch, used) float32, in memory of their own."""
        self.outputs(
            condition, rows, names, lambda name, output: take(name, self.reductions[name](output))
        )

    def repeats(self) -> dict[str, str]:
        """Layers that hand on the output of an earlier one, and that: one probe does for both."""
        return {}


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
        self._repeats: dict[str, str] = {}

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

    def outputs(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """See `Source`."""
        nothing, same = torch.empty(0), Same(ordered=True)
        # Layers that share the probe of an asked one are only looked at.
        also = [x for x, first in self._repeats.items() if first in names and x not in names]

        def at_once(name: str, output: Tensor) -> Tensor:
            first = same.of(name, output) if also else None  # which holds the output before
            if name not in also:
                with torch.autocast(output.device.type, enabled=False):
                    take(name, output)
            elif first != self._repeats[name]:
                raise Apart(name)
            return nothing

        images = self.inputs(condition, rows)
        model = self.loaded.model
        with torch.no_grad(), self.runtime.autocast(), capture(model, [*names, *also], at_once):
            model(images)

    def repeats(self) -> dict[str, str]:
        """See `Source`; looked up with two images, and checked in every batch from then on."""
        same, found = Same(ordered=True), dict[str, str]()

        def look(name: str, output: Tensor) -> None:
            if (first := same.of(name, output)) is not None:
                found[name] = first

        self._repeats = {}
        self.outputs("clean", torch.arange(min(2, len(self.labels))), list(self.reductions), look)
        self._repeats = found
        return dict(found)


class StoredSource(Source):
    """Of some rows of a store."""

    def __init__(
        self, store: Store, reductions: Mapping[str, Reduction], rows: Tensor, runtime: Runtime
    ) -> None:
        self.store, self.reductions, self.rows, self.runtime = store, reductions, rows, runtime
        self.device = runtime.device
        self.labels = torch.from_numpy(store.labels)[rows]
        self.ids = store.ids[rows.numpy()]
        self.keys = torch.from_numpy(self.ids.view(np.int64).copy())
        self.kinds = {name: store.kind(name) for name in store.conditions}

    def inputs(self, condition: str, rows: Tensor) -> Tensor:
        """Images (batch, c, h, w) as the network takes them."""
        return self.runtime.images(self.store.inputs(condition, self.rows[rows].numpy()))

    def outputs(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """See `Source`."""
        wanted = self.rows[rows]
        for name in names:
            layer = self.store.representation(condition, name)
            if not _in_order(wanted):
                layer, start, stop = layer.reordered(wanted.numpy()), 0, len(wanted)
            else:
                start, stop = int(wanted[0]), int(wanted[-1]) + 1
            values = torch.from_numpy(layer.rows(start, stop)).to(self.device)
            take(name, values.view(len(values), *self.reductions[name].shape))


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
        self.kinds, self.device = source.kinds, source.device
        self.labels, self.keys, self.ids = source.labels, source.keys, source.ids
        used = {name: source.reductions[name].used for name in names}
        # Of what is held already nothing more is reduced.
        self.reductions = {x: choose_reduction("flatten", (d,), d) for x, d in used.items()}
        self.room = Room()
        n = len(self.labels)
        self.held: dict[tuple[str, str], Tensor] = {
            (condition, name): torch.empty(n, used[name], device=self.device)
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

    def outputs(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        """See `Source`."""
        index = rows.to(self.device)
        for name in names:
            held = self.held[condition, name]
            room = self.room.of((len(rows), held.shape[1]), held.device)
            take(name, torch.index_select(held, 0, index, out=room))


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
