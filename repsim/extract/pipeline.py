"""Attack, capture, copy and write: batch after batch, the parts overlapped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

@dataclass
class _Run:
    """What every batch needs."""

    name: str
    model: nn.Module
    data: ImageData
    runtime: Runtime
    how: Reduce
    layers: list[Layer]
    batch_size: int
    dtype: str
    opened: list[Store] = field(default_factory=list)

    def batches(self, first: int) -> Iterator[_Batch]:
        """From row `first` on, in the order of the rows."""
        for start in range(first, len(self.data), self.batch_size):
            stop = min(start + self.batch_size, len(self.data))
            pixels = self.data.images[start:stop]
            device = self.runtime.device
            images = self.runtime.images(to_float(pixels.to(device, non_blocking=True)))
            labels = self.data.labels[start:stop].to(device, non_blocking=True)
            keys = self.data.keys[start:stop].to(device, non_blocking=True)
            yield _Batch(start, stop, pixels, images, labels, keys)

    def columns(
        self, source: _Source, batch: _Batch, dtypes: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        """Everything that is stored of a batch under a condition, (batch, ...) each."""
        inputs, first_success = source.make(batch)

        def keep(name: str, output: Tensor) -> Tensor:
            return self.how(output, dtypes[name])

        names = [layer.name for layer in self.layers]
        with torch.no_grad(), self.runtime.autocast(), capture(self.model, names, keep) as captured:
            logits = self.model(self.runtime.images(inputs))
        if batch.start == 0:
            check_logits(logits, len(inputs), len(self.data.classes), self.name)
        logits = logits.float()
        delta = inputs - batch.images
        found = {
            "inputs": batch.pixels if source.kind == "clean" else inputs.contiguous(),
            **{f"layers/{name}": captured[name] for name in names},
            "logits": logits,
            "loss": F.cross_entropy(logits, batch.labels, reduction="none"),
            "moved": (delta != 0).flatten(1).any(1),
            "norm": perturbation_norm(delta, source.norm),
        }
        if first_success is not None:
            found["first_success"] = first_success.to(torch.int32)
        return found

    def described(self, columns: Mapping[str, Tensor], norm: str, reasons: Mapping[str, str]) -> dict[str, Column]:  # fmt: skip
        """How the data sets of a condition look, from its first batch."""
        shapes = {f"layers/{layer.name}": layer.shape for layer in self.layers}
        described = {}
        for name, values in columns.items():
            attrs: dict[str, Any] = {}
            if name in shapes:
                attrs = {
                    "reduce": self.how.text,
                    "shape": list(shapes[name]),
                    "reason": reasons.get(name, ""),
                }
            elif name == "norm":
                attrs = {"norm": norm}
            kind = str(values.dtype).removeprefix("torch.")
            if reasons.get(name) is not None:
                kind = "float32" if reasons[name] else "float16"
            described[name] = Column(tuple(values.shape[1:]), kind, attrs)
        return described

    def check(self, condition: str, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Refuse numbers that are not finite: inputs first, then layers in execution order."""
        for name, values in rows.items():
            if values.dtype.kind != "f" or _is_finite(values):
                continue
            where = np.argwhere(~np.isfinite(values))[0]
            row = start + int(where[0])
            value = values[tuple(where)]
            what = f"layer {name.removeprefix('layers/')}" if "/" in name else name
            place = f"sample {row} (index {int(self.data.index[row])} of the split)"
            if values.dtype == np.float16 and not np.isnan(value):
                raise UserError(
                    f"condition {condition}, {what}, {place}: beyond float16's range, though the "
                    'first batch was not; try dtype="float32" (--dtype float32)'
                )
            raise UserError(
                f"condition {condition}, {what}: expected finite numbers; got {value} for {place}; "
                "check the weights, and try --precision float32"
            )


@dataclass(frozen=True)
class _Maker:
    """Makes the `.part` once the first batch has told what the data sets look like."""

    finished: Path | None
    path: Path
    attrs: Mapping[str, Any]
    data: ImageData
    todo: Sequence[_Source]

    def __call__(self, run: _Run, first: Mapping[str, Mapping[str, Tensor]],
                 reasons: Mapping[str, str]) -> Part:  # fmt: skip
        made = {
            "repsim_version": __version__,
            "torch": torch.__version__,
            "device": run.runtime.device,
            "channels_last": run.runtime.channels_last,
            "batch_size": run.batch_size,
        }
        conditions = [
            Condition(s.name, s.kind, s.attack, run.described(first[s.name], s.norm, reasons), made)
            for s in self.todo
        ]
        needed = sum(stored_bytes(c.columns.values(), len(self.data)) for c in conditions)
        self.path.unlink(missing_ok=True)  # what an earlier process left and cannot be trusted
        if self.finished is not None:
            require_space(self.path, needed + self.finished.stat().st_size)
            return Part.extend(self.path, self.finished, conditions)
        require_space(self.path, needed)
        samples = {
            "index": self.data.index.numpy(),
            "label": self.data.labels.numpy(),
            "id": self.data.ids,
        }
        return Part.create(self.path, self.attrs, samples, conditions)


def _work(
    run: _Run,
    todo: Sequence[_Source],
    part: Part | None,
    make: _Maker,
    out: Path,
    progress: Progress,
) -> float:
    """All batches that are left; returns images per second."""
    names = [source.name for source in todo]
    first = min(part.written(name) for name in names) if part is not None else 0
    samples = len(run.data)
    dtypes = _dtypes(part, todo, run)
    to_host = _ToHost(run.runtime.device)
    began = marked = time.perf_counter()

    def write(source: _Source, start: int, rows: _OnTheWay) -> None:
        values = rows.arrive()
        run.check(source.name, start, values)
        assert part is not None
        part.write(source.name, start, values)

    def mark(stop: int) -> None:
        nonlocal marked
        if stop == samples or time.perf_counter() - marked >= MARK_SECONDS:
            assert part is not None
            part.mark(names, stop)
            marked = time.perf_counter()

    try:
        with (
            Background() as writer,
            progress.task("extract", samples, done=first, unit="img") as task,
        ):
            for batch in run.batches(first):
                if part is None:
                    columns, dtypes, reasons = _first_batch(run, todo, batch)
                    part = make(run, columns, reasons)
                    for source in todo:
                        writer.submit(
                            _job(write, source, batch.start, to_host(columns.pop(source.name)))
                        )
                else:
                    for source in todo:
                        rows = to_host(run.columns(source, batch, dtypes[source.name]))
                        writer.submit(_job(write, source, batch.start, rows))
                writer.submit(_job(mark, batch.stop))
                task.advance(batch.stop - batch.start)
            writer.finish()
        assert part is not None
        part.finish(out)
    except UserError as error:
        if part is not None:
            part.close() if isinstance(error, DiskFull) else part.discard()
        raise
    except BaseException:
        if part is not None:
            part.close()
        raise
    return (samples - first) / (time.perf_counter() - began)


def _job(function: Callable[..., None], *args: Any) -> Callable[[], None]:
    return lambda: function(*args)


def _first_batch(
    run: _Run, todo: Sequence[_Source], batch: _Batch
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, torch.dtype]], dict[str, str]]:
    """The first batch in float32, and from it the type of each layer.

    A layer that needs float32 under one condition gets it under all.

    Returns:
        Columns by condition, on the host and in their final types; types by condition and layer;
        reasons by column, empty for float16.
    """
    whole = {layer.name: torch.float32 for layer in run.layers}
    reasons = {f"layers/{name}": "" for name in whole}
    if run.dtype == "float32":
        reasons = dict.fromkeys(reasons, "asked for")
    columns: dict[str, dict[str, Tensor]] = {}
    for source in todo:
        found = run.columns(source, batch, whole)
        if run.dtype == "auto":
            for name in reasons:
                reasons[name] = reasons[name] or storage_dtype(found[name])[1]
        # To the host at once: three conditions in float32 may be more than a GPU has room for.
        columns[source.name] = {name: values.cpu() for name, values in found.items()}
        run.check(source.name, 0, {k: v.numpy() for k, v in columns[source.name].items()})
    for found in columns.values():
        for name, reason in reasons.items():
            found[name] = found[name] if reason else found[name].half()
    dtypes = {
        name: torch.float32 if reasons[f"layers/{name}"] else torch.float16 for name in whole
    }
    return columns, {source.name: dtypes for source in todo}, reasons


def _dtypes(
    part: Part | None, todo: Sequence[_Source], run: _Run
) -> dict[str, dict[str, torch.dtype]]:
    """The types that an unfinished store decided on, by condition and layer."""
    if part is None:
        return {}
    decided = {}
    for source in todo:
        kinds = part.columns(source.name)
        decided[source.name] = {
            layer.name: getattr(torch, kinds[f"layers/{layer.name}"]) for layer in run.layers
        }
    return decided


@dataclass(frozen=True)
class _OnTheWay:
    """Columns on the host, or soon."""

    columns: Mapping[str, Tensor]
    event: torch.cuda.Event | None

    def arrive(self) -> dict[str, np.ndarray]:
        if self.event is not None:
            self.event.synchronize()
        return {name: values.numpy() for name, values in self.columns.items()}


class _ToHost:
    """Starts copies from the device on a stream of their own, while the next batch computes."""

    def __init__(self, device: str) -> None:
        self._stream = torch.cuda.Stream(device) if device.startswith("cuda") else None

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


def _is_finite(values: np.ndarray) -> bool:
    """No NaN or inf: their exponents are the largest bit patterns; two passes without a copy."""
    signed, unsigned = (np.int16, np.uint16) if values.itemsize == 2 else (np.int32, np.uint32)
    infinity = int(np.array(np.inf, values.dtype).view(unsigned))
    sign = 1 << (8 * values.itemsize - 1)
    if values.size == 0:
        return True
    bits = np.ascontiguousarray(values)
    return bool(
        bits.view(signed).max() < infinity and bits.view(unsigned).max() < infinity + sign
    )
