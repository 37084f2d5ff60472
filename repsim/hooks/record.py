"""One forward pass in which every module's output is kept, and what became of it afterwards."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repsim.hooks.modules import is_activation, named_modules, strip_wrappers, unwrap

NETWORK = "(network)"  # the encoder itself, whose name in named_modules is empty


@dataclass
class Output:
    """What a call of a module gave.

    Attributes:
        name: the module's name, or name@k for its k-th call.
        base: the module's name.
        tensor: the first tensor in the output, as it is now; None if there is none.
        container: "tuple of 2" and the like; "" for a tensor.
        place: where in the container the tensor is, such as `[0]` or `['out']`.
        refused: why it is no activation; "" if it is one.
        digest: of the values when the module returned.
        constant: every image had the same values then.
        finite: no NaN and no infinity were there.
        made: version of the memory when the module returned.
        version: the last one seen.
        changed_by: modules in whose forward the memory was written again.
    """

    name: str
    base: str
    tensor: Tensor | None
    container: str
    place: str
    refused: str
    digest: bytes = b""
    constant: bool = False
    finite: bool = True
    made: int = 0
    version: int = 0
    changed_by: list[str] = field(default_factory=list)

    def shares_memory(self, other: Output) -> bool:
        """Whether both are parts of one piece of memory. Both are alive: an address is unique."""
        assert self.tensor is not None
        assert other.tensor is not None
        mine, theirs = self.tensor.untyped_storage(), other.tensor.untyped_storage()
        return mine.data_ptr() == theirs.data_ptr() != 0


def record(model: nn.Module, images: Tensor, *, keep: bool) -> list[Output]:
    """Run the model and return the outputs in the order in which they were ready.

    The encoder itself is the last, under the name `NETWORK`. Modes and gradients are the caller's.

    Args:
        model: pixel model or bare encoder, wrapped or not.
        images: what it takes.
        keep: hold on to the tensors and watch what happens to them; without it only the names
            and digests are known.
    """
    modules = named_modules(unwrap(model))
    outputs: list[Output] = []
    calls: Counter[str] = Counter()
    active: list[str] = []

    def watch() -> None:
        """Whatever was written since the last look was written in the innermost forward."""
        for one in outputs:
            if one.tensor is not None and one.tensor._version != one.version:
                one.version = one.tensor._version
                one.changed_by.append(active[-1] if active else NETWORK)

    def enter(base: str, module: nn.Module, args: Any) -> None:
        if base == "":
            outputs.clear()
            calls.clear()
            active.clear()
        watch()
        active.append(base or NETWORK)

    def leave(base: str, module: nn.Module, args: Any, result: Any) -> None:
        watch()
        active.pop()
        calls[base] += 1
        shown = base or NETWORK
        name = shown if calls[base] == 1 else f"{shown}@{calls[base]}"
        one = _output(name, shown, result, len(images))
        if not keep:
            one.tensor = None
        outputs.append(one)

    gradients = torch.is_grad_enabled()
    with ExitStack() as stack:
        # Tensors made in inference mode have no version, which tells in-place changes. Leaving
        # that mode switches gradients on.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for base, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(enter, base)).remove)
            stack.callback(module.register_forward_hook(partial(leave, base)).remove)
        strip_wrappers(model)(images)
    watch()
    return outputs


def fired(model: nn.Module, images: Tensor) -> Counter[str]:
    """How often each module ran, by its name; the encoder's is empty."""
    counts: Counter[str] = Counter()

    def count(base: str, module: nn.Module, args: Any, result: Any) -> None:
        counts[base] += 1

    with ExitStack() as stack:
        for base, module in named_modules(unwrap(model)).items():
            stack.callback(module.register_forward_hook(partial(count, base)).remove)
        strip_wrappers(model)(images)
    return counts


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Modes, buffers and the random state of torch are afterwards as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for module, name, buffer, values in buffers:
                    module._buffers[name] = buffer  # the same tensor, should it be replaced
                    buffer.copy_(values)


def digest(tensor: Tensor) -> bytes:
    """A hash of the values in reading order, whatever the shape and the strides."""
    flat = tensor.detach().to("cpu").contiguous().flatten()
    hashed = hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16)
    hashed.update(f"{tensor.dtype}".encode())
    return hashed.digest()


def _output(name: str, base: str, result: Any, batch: int) -> Output:
    place, tensor = _find(result)
    kind = type(result).__name__
    container = "" if isinstance(result, Tensor) else kind
    if isinstance(result, Mapping | tuple | list):
        container += f" of {len(result)}"
    if tensor is None:
        return Output(name, base, None, container, "", f"no tensor but {kind}")
    refused = ""
    if not is_activation(tensor, batch):
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point():
            refused = f"{str(tensor.dtype).removeprefix('torch.')} values of shape {shape}"
        elif tensor.ndim < 2:
            refused = f"shape {shape}: no features beside the batch"
        else:
            refused = f"shape {shape}: the first dimension is not the batch of {batch}"
    tensor = tensor.detach()  # shares memory and version with what the network goes on with
    one = Output(name, base, tensor, container, place, refused, digest(tensor))
    one.made = one.version = tensor._version
    if not refused:
        values = tensor.flatten(1)
        one.constant = bool((values == values[:1]).all())
        one.finite = bool(values.isfinite().all())
    return one


def _find(result: Any) -> tuple[str, Tensor | None]:
    """The first tensor in nested containers, as `first_tensor` takes it, and where it is."""
    if isinstance(result, Tensor):
        return "", result
    items: Any = []
    if isinstance(result, Mapping):
        items = result.items()
    elif isinstance(result, tuple | list):
        items = enumerate(result)
    for key, item in items:
        place, tensor = _find(item)
        if tensor is not None:
            return f"[{key!r}]{place}", tensor
    return "", None
