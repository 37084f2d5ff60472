"""The outputs of named layers, taken the moment they are ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.hooks.modules import first_tensor, is_activation, named_modules, observed, unwrap
from repsim.registry import near


@contextmanager
def capture(
    model: nn.Module,
    names: Iterable[str],
    transform: Callable[[str, Tensor], Tensor] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Keep the outputs of the named layers of every forward inside the block.

    The dictionary it yields is emptied when a forward starts, and when it has ended holds
    name -> (batch, ...) in execution order, without gradients. Inside, the model is in eval mode
    and its parameters need no gradient (gradients to the inputs work as ever); mode (module by
    module), `requires_grad` and `.grad` are afterwards as they were. Compiled parts run uncompiled.

    Args:
        model: pixel model or bare encoder, wrapped or not; call it itself, not one of its methods.
        names: as `trace` and `select_layers` give them; the head's name works too.
        transform: (name, output) -> what to keep, called at once, without gradients, under the
            forward's autocast. It need not copy: a result that still shares memory with the
            output is copied.

    Raises:
        UserError: there is no such module; or, in a forward: a layer did not run, its output holds
            no (batch, ...) tensor, or the model runs as several DataParallel replicas.
    """
    encoder = unwrap(model)
    modules = named_modules(encoder)
    wanted = set(names)
    bases = {name: _base(name, modules) for name in wanted}
    captured: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    batch: int | None = None  # None: no forward of the encoder is under way

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal batch
        captured.clear()
        calls.clear()
        images = first_tensor((args, kwargs))
        batch = None if images is None else len(images)

    def take(base: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[base] += 1
        name = base if calls[base] == 1 else f"{base}@{calls[base]}"
        if name in wanted:
            output = _activation(name, module, output, batch)
            # A following in-place operation would change the output: copy or reduce it now.
            with torch.no_grad():
                kept = output if transform is None else transform(name, output)
                captured[name] = kept.clone() if _share_memory(kept, output) else kept

    def end(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal batch
        batch = None
        if missing := sorted(wanted - captured.keys()):
            raise UserError(
                f"layer {', '.join(missing[:3])} did not run in this forward; try the names that "
                "repsim.hooks.trace gives for this model"
            )

    with ExitStack() as stack:
        stack.enter_context(observed(model))
        stack.callback(encoder.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for base in set(bases.values()):
            stack.callback(modules[base].register_forward_hook(partial(take, base)).remove)
        stack.callback(encoder.register_forward_hook(end).remove)
        yield captured


def _base(name: str, modules: dict[str, nn.Module]) -> str:
    """The module of a layer's name: `name@2` is the second call of `name`."""
    base, at, count = name.rpartition("@")
    base = base if at and count.isdigit() and name not in modules else name
    if base in modules and base:
        return base
    known = [module for module in modules if module]
    raise UserError(f"the model has no layer {name!r}; near: {near(name, known)}")


def _activation(name: str, module: nn.Module, output: Any, batch: int | None) -> Tensor:
    """The tensor of a module's output, (batch, ...), cut from the graph."""
    if getattr(module, "_is_replica", False):
        raise UserError(
            "layers can't be captured in DataParallel replicas, of which each sees a part of the "
            "batch; expected a model on one device: try repsim.hooks.unwrap(model)"
        )
    if batch is None:
        raise UserError(
            f"layer {name} ran outside a forward of the encoder: expected a call of the model "
            "itself with images, not of one of its methods"
        )
    tensor = first_tensor(output)
    if tensor is None or not is_activation(tensor, batch):
        found = "no tensor" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        raise UserError(
            f"layer {name} can't be captured: expected floating-point values of shape "
            f"({batch}, ...), one row an image, got {found}"
        )
    return tensor.detach()


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
