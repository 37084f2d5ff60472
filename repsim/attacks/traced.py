"""Forwards without a gradient in less time: a frozen trace, convolutions fused with what follows.

Square and the minimum-norm attacks ask the network thousands of times for logits alone. A trace
of torch.jit, optimised for inference, does each convolution, its ReLU and the addition of a
shortcut in one pass. torch.jit is deprecated, but the alternative, torch.compile, takes tens of
seconds to compile. Where it is missing or its answer differs, the network itself is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_AFTER = 16  # forwards; making the trace costs a few
_TOLERANCE = 1e-4  # of the largest logit


class TracedForward:
    """The forward of a network that is run without hooks or gradients by its trace.

    It takes the place of `net.forward`, so that the names of the layers stay. Not used on a GPU,
    in autocast, with gradients, or while a layer has a hook.

    Args:
        net: in eval mode, without gradients to its parameters.
    """

    def __init__(self, net: nn.Module) -> None:
        self.plain: Callable[[Tensor], Any] = type(net).forward.__get__(net)
        self.modules = list(net.modules())
        self.forget()

    def forget(self) -> None:
        """The weights have changed: the trace, which holds them, is of no use."""
        self.calls = 0
        self.trace: Callable[[Tensor], Any] | None = None

    def __call__(self, x: Tensor) -> Any:
        """What the network returns for x."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self.plain(x)
        if any(m._forward_hooks or m._forward_pre_hooks for m in self.modules):
            return self.plain(x)
        self.calls += 1
        if self.calls == _AFTER:
            self.trace = self._make(x)
        return self.plain(x) if self.trace is None else self.trace(x)

    def _make(self, x: Tensor) -> Callable[[Tensor], Any] | None:
        wanted = self.plain(x)
        if not isinstance(wanted, Tensor) or not bool(torch.isfinite(wanted).all()):
            return None
        net = _Plain(self.plain, self.modules[0])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deprecation
                # A branch that depends on values would be traced one way only.
                warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
                traced = torch.jit.trace(net.eval(), x[:2], check_trace=False)
                trace = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
                # Its first runs of a size are for profiling; another size must do as well.
                found = [trace(part) for part in (x, x, x[: (len(x) + 1) // 2])][1]
        except Exception:  # whatever it cannot trace
            return None
        scale = wanted.abs().amax().clamp_min(1e-6)
        same = found.shape == wanted.shape and (found - wanted).abs().amax() <= _TOLERANCE * scale
        return trace if same else None


class _Plain(nn.Module):
    """A network by its plain forward, for the tracer."""

    def __init__(self, forward: Callable[[Tensor], Any], net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._plain = forward

    def forward(self, x: Tensor) -> Any:
        return self._plain(x)
