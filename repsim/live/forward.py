"""One batch of one network under one condition: attacked, run, and its Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, to_float
from repsim.distributed import alone
from repsim.errors import UserError
from repsim.extract.conditions import Batch, Source
from repsim.hooks import Layer, capture
from repsim.hooks.same import Same
from repsim.live.cache import BatchGrams
from repsim.runtime import Runtime
from repsim.similarity.minibatch import pack
from repsim.similarity.products import sample_products


@dataclass(frozen=True)
class Pass:
    """One network under one condition.

    Attributes:
        loaded: the network, on its device.
        source: the condition.
        layers: which outputs, in execution order.
        key: name of its Gram matrices in the cache.
    """

    loaded: LoadedModel
    source: Source
    layers: Sequence[Layer]
    key: str

    @property
    def names(self) -> list[str]:
        """Names of the layers."""
        return [layer.name for layer in self.layers]


def batch_grams(
    one: Pass, data: ImageData, rows: tuple[int, int], batch_size: int, runtime: Runtime
) -> BatchGrams:
    """The Gram matrices of all layers over some rows of the data.

    Rows that go through the network at once leave no activations behind: each layer's inner
    products are taken in its hook. Of more rows the activations are held on the host until the
    last of them is there.

    Args:
        one: network and condition.
        data: the images.
        rows: (start, stop).
        batch_size: images at once.
        runtime: device, precision, layout.

    Raises:
        UserError: activations that are not finite, naming the layer and the sample.
    """
    batches = list(_batches(data, rows, batch_size, runtime))
    if len(batches) == 1:
        inputs = _inputs(one, batches[0])
        packed, logits = _at_once(one, inputs, runtime)
    else:
        packed, logits = _in_parts(one, batches, runtime)
    if not bool(packed.isfinite().all()):
        _refuse(one, batches, runtime)
    features = {layer.name: math.prod(layer.shape) for layer in one.layers}
    return BatchGrams(features, packed.cpu(), logits.cpu())


def _batches(
    data: ImageData, rows: tuple[int, int], batch_size: int, runtime: Runtime
) -> Iterator[Batch]:
    for start in range(*rows, batch_size):
        part = slice(start, min(start + batch_size, rows[1]))
        pixels = data.images[part]
        yield Batch(
            part.start, part.stop, pixels,
            runtime.images(to_float(pixels.to(runtime.device, non_blocking=True))),
            data.labels[part].to(runtime.device), data.keys[part].to(runtime.device),
        )  # fmt: skip


def _inputs(one: Pass, batch: Batch) -> Tensor:
    """The batch under the condition, whatever the other ranks do."""
    with alone():
        return one.source.make(batch)[0]


def _at_once(one: Pass, inputs: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """(layers, m(m+1)/2) and logits (m, classes); nothing of the activations stays."""
    same, grams = Same(), dict[str, Tensor]()

    def products(name: str, output: Tensor) -> Tensor:
        other = same.of(name, output)
        grams[name] = grams[other] if other else pack(sample_products(output))
        return grams[name]

    logits = _run(one, inputs, runtime, products)
    return torch.stack([grams[name] for name in one.names]), logits


def _in_parts(one: Pass, batches: Sequence[Batch], runtime: Runtime) -> tuple[Tensor, Tensor]:
    """The same over several batches, whose activations are held on the host."""
    total = batches[-1].stop - batches[0].start
    held: dict[str, Tensor] = {}
    alias: dict[str, str] = {}
    logits = []
    for batch in batches:
        same = Same()
        place = slice(batch.start - batches[0].start, batch.stop - batches[0].start)

        def keep(name: str, output: Tensor, same: Same = same, place: slice = place) -> Tensor:
            if other := same.of(name, output):
                alias[name] = other
            else:
                if name not in held:
                    layout = output.new_empty((total, *output.shape[1:]), device="cpu").float()
                    dense = output.ndim == 4 and not output.is_contiguous()
                    held[name] = layout.to(memory_format=torch.channels_last) if dense else layout
                held[name][place] = output.to("cpu", torch.float32)
            return output.new_empty(0)

        inputs = _inputs(one, batch)
        logits.append(_run(one, inputs, runtime, keep))
    grams: dict[str, Tensor] = {}
    for name in list(held):
        grams[name] = pack(sample_products(held.pop(name).to(runtime.device))).cpu()
    rows = [grams[alias.get(name, name)] for name in one.names]
    return torch.stack(rows), torch.cat(logits)


def _run(one: Pass, inputs: Tensor, runtime: Runtime, take: object) -> Tensor:
    model = one.loaded.model
    with torch.no_grad(), runtime.autocast(), capture(model, one.names, take):  # type: ignore[arg-type]
        logits = model(inputs)
    return logits.float()


def _refuse(one: Pass, batches: Sequence[Batch], runtime: Runtime) -> None:
    """Name the layer and the sample that are not finite."""
    for batch in batches:

        def check(name: str, output: Tensor, batch: Batch = batch) -> Tensor:
            bad = ~output.flatten(1).isfinite().all(1)
            if bool(bad.any()):
                sample = batch.start + int(torch.nonzero(bad)[0])
                raise UserError(
                    f"layer {name} ({one.source.name}, {one.loaded.name}) expects finite "
                    f"activations; sample {sample} has NaN or infinity; try --precision float32, "
                    "or look at the network's weights"
                )
            return output.new_empty(0)

        _run(one, _inputs(one, batch), runtime, check)
    raise UserError(
        f"{one.loaded.name} under {one.source.name} expects activations whose squares float32 can "
        "hold; they are larger"
    )
