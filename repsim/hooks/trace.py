"""One forward pass taken apart: which modules ran, in which order, which of them is the head."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.hooks.modules import (
    first_tensor,
    is_activation,
    named_modules,
    observed,
    strip_wrappers,
    unwrap,
)

# A tracing run has this many images: an output whose first dimension is not the batch (tokens
# first, windows, a table of position biases) is then recognised, unless it is 7 by accident.
TRACE_BATCH = 7
# Outputs of more values an image than this are no logits, and are not kept to compare with them.
MOST_LOGITS = 2**16


@dataclass(frozen=True)
class Layer:
    """One call of one module in a forward pass.

    Attributes:
        name: the module's name in the bare encoder; `name@2` for its second call, and so on.
        shape: of the output for one image, without the batch.
        kind: the module's class.
        leaf: no module inside it ran.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    leaf: bool


@dataclass
class Call:
    """What is known of a call of a module when its output is ready."""

    base: str  # the module's name
    name: str  # the same, or base@k for the k-th call
    module: nn.Module
    started: int  # number of calls that had finished when this one started
    shape: tuple[int, ...] | None  # for one image; None: the output is no activation
    value: int  # the same for consecutive calls that hand on one tensor
    output: Tensor | None  # kept only where it may be the logits
    leaf: bool = True  # no module inside it ran


@dataclass
class Trace:
    """All calls of a forward pass in the order in which the outputs were ready.

    Attributes:
        modules: every module of the bare encoder, run or not, by name.
        calls: without that of the encoder itself.
        head: index in `calls` of the module that makes the logits, None if none does.
        excluded: indices of the head and of every call that does no more than hand on the logits.
    """

    modules: dict[str, nn.Module]
    calls: list[Call]
    head: int | None
    excluded: set[int]

    @property
    def places(self) -> list[int]:
        """Indices in `calls` of the layers."""
        usable = (i for i, call in enumerate(self.calls) if call.shape is not None)
        return [i for i in usable if i not in self.excluded]

    def layer(self, place: int) -> Layer:
        """The call at this index, one of `places`, as a layer."""
        call = self.calls[place]
        assert call.shape is not None
        return Layer(call.name, call.shape, type(call.module).__name__, call.leaf)


def trace(model: nn.Module, inputs: Tensor) -> list[Layer]:
    """Every layer that runs, in the order in which the outputs are ready.

    Left out are the encoder itself, parallel and compile wrappers, the head (the module that makes
    the logits) with everything around it whose output is the logits, and modules whose output
    holds no floating-point tensor with the batch as its first dimension.

    Args:
        model: pixel model or bare encoder, wrapped or not.
        inputs: (batch, channels, height, width), what `model` takes; at most seven are used.

    Returns:
        Layers in execution order, empty for a model without inner modules.

    Raises:
        UserError: there are no inputs.
    """
    traced = trace_calls(model, inputs)
    return [traced.layer(place) for place in traced.places]


def head_name(model: nn.Module, inputs: Tensor) -> str | None:
    """Name of the module that makes the logits in the bare encoder; None if no module does.

    See `trace` for the arguments. Of several heads whose logits are combined, the first.
    """
    traced = trace_calls(model, inputs)
    return None if traced.head is None else traced.calls[traced.head].base


def trace_calls(model: nn.Module, inputs: Tensor) -> Trace:
    """Run the model once and say what ran; see `trace`."""
    if len(inputs) == 0:
        raise UserError("finding a model's layers needs at least one image, got none")
    modules = named_modules(unwrap(model))
    calls = _record(model, modules, inputs)
    around = {parent for call in calls for parent in _parents(call.base)}
    for call in calls:
        call.leaf = call.base not in around
    encoder = calls.pop()  # the last to finish; its output is the logits
    head, excluded = _find_head(calls, encoder.output)
    return Trace(modules, calls, head, excluded)


def _record(model: nn.Module, modules: dict[str, nn.Module], inputs: Tensor) -> list[Call]:
    calls: list[Call] = []
    started: dict[str, list[int]] = defaultdict(list)
    counts: Counter[str] = Counter()
    previous: tuple[Tensor, int] | None = None

    def enter(base: str, module: nn.Module, args: Any) -> None:
        if base == "":
            calls.clear()
            counts.clear()
        started[base].append(len(calls))

    def leave(base: str, module: nn.Module, args: Any, output: Any) -> None:
        nonlocal previous
        counts[base] += 1
        value = calls[-1].value if calls else 0
        tensor = first_tensor(output)
        if tensor is None or not _handed_on(tensor, previous):
            value += 1
        previous = None if tensor is None else (tensor, tensor._version)
        shape = None
        if tensor is not None and is_activation(tensor, TRACE_BATCH):
            shape = tuple(tensor.shape[1:])
        small = tensor is not None and tensor.numel() <= TRACE_BATCH * MOST_LOGITS
        calls.append(
            Call(
                base,
                base if counts[base] == 1 else f"{base}@{counts[base]}",
                module,
                started[base].pop(),
                shape,
                value,
                tensor if small else None,
            )
        )

    with ExitStack() as stack:
        stack.enter_context(observed(model))
        # Tensors made in inference mode have no version, which tells in-place changes.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for base, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(enter, base)).remove)
            stack.callback(module.register_forward_hook(partial(leave, base)).remove)
        strip_wrappers(model)(inputs[torch.arange(TRACE_BATCH) % len(inputs)])
    return calls


def _handed_on(tensor: Tensor, previous: tuple[Tensor, int] | None) -> bool:
    """Is it the tensor of the previous call, unchanged (perhaps reshaped)?"""
    if previous is None:
        return False
    before, version = previous
    # The tensor before is still alive, so the same address is the same memory; an in-place
    # change raises the version, which views share.
    return (
        tensor.data_ptr() == before.data_ptr()
        and tensor.numel() == before.numel()
        and tensor._version == version
    )


def _find_head(calls: list[Call], logits: Tensor | None) -> tuple[int | None, set[int]]:
    """Index of the head, and indices of all calls that are left out with it."""
    if logits is None:
        return None, set()
    same = {i for i, call in enumerate(calls) if _equal(call.output, logits)}
    leaves = [i for i, call in enumerate(calls) if call.leaf]
    weighted = [i for i in leaves if has_matrix(calls[i].module)]
    makers = [i for i in weighted if i in same]
    if not makers and leaves and isinstance(calls[leaves[-1]].module, nn.Identity):
        # A head that was taken off (`fc = nn.Identity()`): the other layers keep their names.
        makers = [i for i in leaves[-1:] if i in same]
    if makers:
        return makers[-1], {i for i in same if i >= makers[-1]}

    # Are the last weights of all ones that give one channel a class? Then softmax, pooling or a
    # scale made the logits of it, and all that is no layer. (A norm comes last in an encoder
    # without head.)
    trained = [i for i in leaves if any(True for _ in calls[i].module.parameters())]
    if not weighted or trained[-1] != weighted[-1] or logits.ndim != 2:
        return None, set()
    shape = calls[weighted[-1]].shape
    if shape is None or logits.shape[1] not in shape:
        return None, set()
    head = weighted[-1]
    # Several heads side by side (distillation) are combined into the logits: the first of them.
    for i in reversed(leaves[: leaves.index(head)]):
        if i not in weighted or calls[i].shape != shape:
            break
        head = i
    return head, set(range(head, len(calls)))


def has_matrix(module: nn.Module) -> bool:
    """Has it weights that mix channels? A norm has only vectors."""
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _equal(output: Tensor | None, logits: Tensor) -> bool:
    if output is None or output.numel() != logits.numel():
        return False
    return torch.equal(output.flatten().to(logits.dtype), logits.flatten())


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
