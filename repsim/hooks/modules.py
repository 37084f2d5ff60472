"""Modules of the bare encoder by name, and a state of the model in which hooks see everything."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from repsim.models.normalize import Normalized


def unwrap(model: nn.Module) -> nn.Module:
    """The bare encoder inside Normalized, DataParallel and torch.compile, however nested."""
    while isinstance(model := strip_wrappers(model), Normalized):
        model = model.encoder
    return model


def strip_wrappers(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        # The class of torch.compile's wrapper is private, and importing it takes a second.
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def named_modules(encoder: nn.Module) -> dict[str, nn.Module]:
    """`encoder.named_modules()` without wrappers inside (`features.module.0` is `features.0`).

    Parametrizations (weight norm, spectral norm) are left out: they make weights, no activations.
    A module registered twice has its first name.
    """
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, name: str) -> None:
        module = strip_wrappers(module)
        if module in seen:
            return
        seen.add(module)
        found[name] = module
        for child, inner in module.named_children():
            if not (child == "parametrizations" and parametrize.is_parametrized(module)):
                visit(inner, f"{name}.{child}" if name else child)

    visit(encoder, "")
    return found


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor in nested tuples, lists and dicts; None if there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        for item in output:
            if (tensor := first_tensor(item)) is not None:
                return tensor
    return None


def is_activation(tensor: Tensor, batch: int) -> bool:
    """Floating-point values with one row an image: (batch, features...)."""
    return tensor.is_floating_point() and tensor.ndim > 1 and len(tensor) == batch


@contextmanager
def observed(model: nn.Module) -> Iterator[None]:
    """Eval mode, parameters without gradient, every module really called; undone at the end.

    A transformer layer's fast path computes everything in one operation and calls none of its
    modules, and compiled code calls only the hooks that were there when it was compiled: both are
    switched off inside.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it is slow
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            model.eval()
            for parameter, _ in gradients:
                parameter.requires_grad_(False)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in gradients:
                parameter.requires_grad_(requires_grad)
