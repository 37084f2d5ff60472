"""Attack, capture, copy and write, batch after batch, the copies and writes behind the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from repsim.extract.shares import Share
from repsim.hooks import Layer, capture
from repsim.reduce import Reduce
from repsim.runtime import Runtime
from repsim.store import (
    Background,
    Column,
    Condition,
    DiskFull,
    Part,
    is_large,
    storage_dtype,
)

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
        compress: how inputs and layers are compressed.
        agree: from the reasons for float32 that the first batch of a share gives, by layer, ""
            for float16, to those that hold for the whole store.
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
    compress: str
    agree: Callable[[dict[str, str]], dict[str, str]]

    def run(
        self, share: Share, make: Callable[[list[Condition]], Part], advance: Callable[[int], None]
    ) -> None:
        """Do the rows of a share that are not written yet and give its file the final name.

        Args:
            share: the rows, and the file, which an earlier call may have begun.
            make: makes the file if there is none, given what its conditions look like.
            advance: told of every batch.
        """
        names = [source.name for source in self.sources]
        part = Part.reopen(share.part) if share.begun else None
        dtypes = self._dtypes(self.agree({})) if part else {}
        to_host = _ToHost(self.runtime.device)
        try:
            with Background() as writer:
                sink = None
                for batch in self._batches(share.start + share.written, share.stop):
                    if part is None:
                        columns, dtypes, conditions = self._first(batch)
                        part = make(conditions)
                    else:
                        columns = {}
                    sink = sink or _Sink(part, names, self.data, share)
                    for source in self.sources:
                        found = columns.pop(source.name, None) or self._measure(
                            source, batch, dtypes
                        )
                        rows = to_host(found)
                        writer.submit(partial(sink.write, source.name, batch.start, rows))
                        del found, rows
                    writer.submit(partial(sink.mark, batch.stop))
                    advance(batch.stop - batch.start)
                writer.finish()
            assert part is not None
            part.finish(share.path)
        except BaseException as error:
            if part is not None:
                # What a user's mistake left would fail again; anything else can be continued.
                if isinstance(error, UserError) and not isinstance(error, DiskFull):
                    part.discard()
                part.close()
            raise

    def _batches(self, first: int, last: int) -> Iterator[Batch]:
        """Rows `first` to `last`, in their order."""
        device = self.runtime.device
        for start in range(first, last, self.batch_size):
            rows = slice(start, min(start + self.batch_size, last))
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

    def _dtypes(self, reasons: Mapping[str, str]) -> dict[str, torch.dtype]:
        """By layer."""
        return {name: torch.float32 if why else torch.float16 for name, why in reasons.items()}

    def _first(
        self, batch: Batch
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, torch.dtype], list[Condition]]:
        """The first batch in float32, and from it the type of each layer.

        A layer that needs float32 under one condition gets it under all that are made together.

        Returns:
            Columns by condition, on the host in their final types; types by layer; what the
            conditions look like.
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
            _check(source.name, batch.start, _as_numpy(columns[source.name]), self.data)
        reasons = self.agree(reasons)
        dtypes = self._dtypes(reasons)
        for found in columns.values():
            for name, dtype in dtypes.items():
                found[_path(name)] = found[_path(name)].to(dtype)
        conditions = [self._described(s, columns[s.name], reasons) for s in self.sources]
        return columns, dtypes, conditions

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
                self.compress if is_large(name) else "none",
                self.batch_size,
            )
            for name, values in columns.items()
        }
        made = {
            "repsim_version": __version__,
            "torch": torch.__version__,
            "device": self.runtime.device,
            "channels_last": self.runtime.channels_last,
            "batch_size": self.batch_size,
            "compress": self.compress,
        }
        return Condition(source.name, source.kind, source.attack, described, made)


class _Sink:
    """What the writing thread does with the rows that arrive."""

    def __init__(
        self, part: Part, conditions: Sequence[str], data: ImageData, share: Share
    ) -> None:
        self._part = part
        self._conditions = conditions
        self._data = data
        self._share = share
        self._marked = time.perf_counter()

    def write(self, condition: str, start: int, rows: _OnTheWay) -> None:
        """Check and write a batch of a condition."""
        values = rows.arrive()
        _check(condition, start, values, self._data)
        self._part.write(condition, start - self._share.start, values)

    def mark(self, stop: int) -> None:
        """Count the rows before `stop` as written, unless that was done a moment ago."""
        if stop == self._share.stop or time.perf_counter() - self._marked >= MARK_SECONDS:
            self._part.mark(self._conditions, stop - self._share.start)
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
