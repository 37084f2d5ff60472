"""Attack, capture, copy and write, batch after batch, the copies and writes behind the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim import __version__
from repsim.attacks import perturbation_norm
from repsim.data import ImageData, to_float
from repsim.errors import UserError
from repsim.extract.conditions import Batch, Source
from repsim.hooks import Layer, capture
from repsim.progress import Progress
from repsim.reduce import Reduce
from repsim.runtime import Runtime
from repsim.store import Background, Column, Condition, DiskFull, Part, storage_dtype

# A kill loses at most the work of this long; each mark waits for the disk.
MARK_SECONDS = 2.0


@dataclass(frozen=True)
class Pipeline:
    """Everything that stays the same from batch to batch.

    Attributes:
        name: of the network, for messages.
        model: pixel model on its device.
        data: the images.
        runtime: device, precision, layout.
        how: what is kept of an output.
        layers: which outputs.
        sources: conditions to be made; all of them go through with each batch.
        batch_size: images at once.
        dtype: "auto" or "float32".
    """

    name: str
    model: nn.Module
    data: ImageData
    runtime: Runtime
    how: Reduce
    layers: Sequence[Layer]
    sources: Sequence[Source]
    batch_size: int
    dtype: str

    def run(
        self,
        part: Part | None,
        make: Callable[[list[Condition]], Part],
        out: Path,
        progress: Progress,
    ) -> float:
        """Do all rows that are not written yet and give the file its final name.

        Args:
            part: the file that an earlier call left.
            make: makes it if there is none, given what its conditions look like.
            out: the final name.
            progress: told of every batch.

        Returns:
            Images per second.
        """
        names = [source.name for source in self.sources]
        first = min(part.written(name) for name in names) if part else 0
        dtypes = self._decided(part) if part else {}
        to_host = _ToHost(self.runtime.device)
        began = time.perf_counter()
        try:
            with (
                Background() as writer,
                progress.task("extract", len(self.data), done=first, unit="img") as task,
            ):
                sink = None
                for batch in self._batches(first):
                    if part is None:
                        columns, dtypes, conditions = self._first(batch)
                        part = make(conditions)
                    else:
                        columns = {}
                    sink = sink or _Sink(part, names, self.data)
                    for source in self.sources:
                        found = columns.pop(source.name, None) or self._measure(
                            source, batch, dtypes[source.name]
                        )
                        rows = to_host(found)
                        writer.submit(partial(sink.write, source.name, batch.start, rows))
                        del found, rows
                    writer.submit(partial(sink.mark, batch.stop))
                    task.advance(batch.stop - batch.start)
                writer.finish()
            assert part is not None
            part.finish(out)
        except BaseException as error:
            if part is not None:
                # What a user's mistake left would fail again; anything else can be continued.
                if isinstance(error, UserError) and not isinstance(error, DiskFull):
                    part.discard()
                part.close()
            raise
        return (len(self.data) - first) / (time.perf_counter() - began)

    def _batches(self, first: int) -> Iterator[Batch]:
        """From row `first` on, in the order of the rows."""
        device = self.runtime.device
        for start in range(first, len(self.data), self.batch_size):
            rows = slice(start, min(start + self.batch_size, len(self.data)))
            pixels = self.data.images[rows]
            yield Batch(
                rows.start,
                rows.stop,
                pixels,
                self.runtime.images(to_float(pixels.to(device, non_blocking=True))),
                self.data.labels[rows].to(device, non_blocking=True),
                self.data.keys[rows].to(device, non_blocking=True),
            )

    def _measure(
        self, source: Source, batch: Batch, dtypes: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        """Everything that is stored of a batch under a condition, (batch, ...) each."""
        inputs, first_success = source.make(batch)

        def keep(name: str, output: Tensor) -> Tensor:
            return self.how(output, dtypes[name])

        names = [layer.name for layer in self.layers]
        with torch.no_grad(), self.runtime.autocast(), capture(self.model, names, keep) as captured:
            logits = self.model(inputs)
        if logits.shape != (len(inputs), len(self.data.classes)):
            raise UserError(
                f"{self.name}: expected logits of shape (batch, {len(self.data.classes)}) for the "
                f"classes of {self.data.name}; got {tuple(logits.shape)}"
            )
        logits = logits.float()
        delta = inputs - batch.images
        found = {
            "inputs": batch.pixels if source.kind == "clean" else inputs.contiguous(),
            **{_path(name): captured[name] for name in names},
            "logits": logits,
            "loss": F.cross_entropy(logits, batch.labels, reduction="none"),
            "moved": (delta != 0).flatten(1).any(1),
            "norm": perturbation_norm(delta, source.norm),
        }
        if first_success is not None:
            found["first_success"] = first_success.to(torch.int32)
        return found

    def _first(
        self, batch: Batch
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, torch.dtype]], list[Condition]]:
        """The first batch in float32, and from it the type of each layer.

        A layer that needs float32 under one condition gets it under all that are made together.

        Returns:
            Columns by condition, on the host in their final types; types by condition and layer;
            what the conditions look like.
        """
        whole = {layer.name: torch.float32 for layer in self.layers}
        reasons = dict.fromkeys(whole, "asked for" if self.dtype == "float32" else "")
        columns: dict[str, dict[str, Tensor]] = {}
        for source in self.sources:
            found = self._measure(source, batch, whole)
            for name in reasons:
                reasons[name] = reasons[name] or storage_dtype(found[_path(name)])[1]
            # To the host at once: several conditions in float32 may be more than a GPU can hold.
            columns[source.name] = {name: values.cpu() for name, values in found.items()}
            _check(source.name, 0, _as_numpy(columns[source.name]), self.data)
        dtypes = {n: torch.float32 if reason else torch.float16 for n, reason in reasons.items()}
        for found in columns.values():
            for name, dtype in dtypes.items():
                found[_path(name)] = found[_path(name)].to(dtype)
        conditions = [self._described(s, columns[s.name], reasons) for s in self.sources]
        return columns, {source.name: dtypes for source in self.sources}, conditions

    def _described(
        self, source: Source, columns: Mapping[str, Tensor], reasons: Mapping[str, str]
    ) -> Condition:
        """How a condition's data sets look, from its first batch."""
        attrs: dict[str, dict[str, Any]] = {"norm": {"norm": source.norm}}
        for layer in self.layers:
            attrs[_path(layer.name)] = {
                "reduce": self.how.text,
                "shape": list(layer.shape),
                "reason": reasons[layer.name],
            }
        described = {
            name: Column(
                tuple(values.shape[1:]),
                str(values.dtype).removeprefix("torch."),
                attrs.get(name, {}),
            )
            for name, values in columns.items()
        }
        made = {
            "repsim_version": __version__,
            "torch": torch.__version__,
            "device": self.runtime.device,
            "channels_last": self.runtime.channels_last,
            "batch_size": self.batch_size,
        }
        return Condition(source.name, source.kind, source.attack, described, made)

    def _decided(self, part: Part) -> dict[str, dict[str, torch.dtype]]:
        """The types that an unfinished store has, by condition and layer."""
        decided = {}
        for source in self.sources:
            kinds = part.columns(source.name)
            decided[source.name] = {
                layer.name: getattr(torch, kinds[_path(layer.name)]) for layer in self.layers
            }
        return decided


class _Sink:
    """What the writing thread does with the rows that arrive."""

    def __init__(self, part: Part, conditions: Sequence[str], data: ImageData) -> None:
        self._part = part
        self._conditions = conditions
        self._data = data
        self._marked = time.perf_counter()

    def write(self, condition: str, start: int, rows: _OnTheWay) -> None:
        """Check and write a batch of a condition."""
        values = rows.arrive()
        _check(condition, start, values, self._data)
        self._part.write(condition, start, values)

    def mark(self, stop: int) -> None:
        """Count the rows before `stop` as written, unless that was done a moment ago."""
        if stop == len(self._data) or time.perf_counter() - self._marked >= MARK_SECONDS:
            self._part.mark(self._conditions, stop)
            self._marked = time.perf_counter()


@dataclass(frozen=True)
class _OnTheWay:
    """Columns on the host, or soon."""

    columns: Mapping[str, Tensor]
    event: torch.cuda.Event | None

    def arrive(self) -> dict[str, np.ndarray]:
        if self.event is not None:
            self.event.synchronize()
        return _as_numpy(self.columns)


class _ToHost:
    """Starts copies from the device on a stream of their own, while the next batch computes."""

    def __init__(self, device: str) -> None:
        stream: Any = torch.cuda.Stream  # torch declares no types for its arguments
        self._stream = stream(device) if device.startswith("cuda") else None

    def __call__(self, columns: Mapping[str, Tensor]) -> _OnTheWay:
        if self._stream is None:
            return _OnTheWay(columns, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        host = {}
        with torch.cuda.stream(self._stream):
            for name, values in columns.items():
                if not values.is_cuda:
                    host[name] = values
                    continue
                # Pinned memory goes back to torch's pool when the writer is done with it.
                pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                host[name] = pinned.copy_(values, non_blocking=True)
                values.record_stream(self._stream)
        return _OnTheWay(host, self._stream.record_event())


def _path(layer: str) -> str:
    """Of a layer's data set below its condition."""
    return f"layers/{layer}"


def _as_numpy(columns: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in columns.items()}


def _check(condition: str, start: int, rows: Mapping[str, np.ndarray], data: ImageData) -> None:
    """Refuse numbers that are not finite: inputs first, then layers in execution order."""
    for name, values in rows.items():
        if values.dtype.kind != "f" or is_finite(values):
            continue
        where = tuple(np.argwhere(~np.isfinite(values))[0])
        row, value = start + int(where[0]), values[where]
        what = f"layer {name.removeprefix('layers/')}" if "/" in name else name
        place = f"sample {row} (index {int(data.index[row])} of the split)"
        if values.dtype == np.float16 and not np.isnan(value):
            raise UserError(
                f"condition {condition}, {what}, {place}: beyond float16's range, though the first "
                "batch was not; try --dtype float32"
            )
        raise UserError(
            f"condition {condition}, {what}: expected finite numbers; got {value} for {place}; "
            "check the weights, and try --precision float32"
        )


def is_finite(values: np.ndarray) -> bool:
    """No NaN and no inf in float16 or float32, without a copy.

    Both have the largest exponent, so their bit patterns are the largest: as signed integers
    those above +inf's, as unsigned ones those above -inf's.
    """
    if values.size == 0:
        return True
    signed, unsigned = (np.int16, np.uint16) if values.itemsize == 2 else (np.int32, np.uint32)
    plus, minus = (int(np.array(v, values.dtype).view(unsigned)) for v in (np.inf, -np.inf))
    bits = np.ascontiguousarray(values)
    return bool(bits.view(signed).max() < plus and bits.view(unsigned).max() < minus)
