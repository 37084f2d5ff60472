"""A copy of a frozen network that computes the same in less time.

In eval mode batch normalisation is an affine map of each channel, which the convolution before it
can do: w ← w·γ/σ, b ← (b - μ)·γ/σ + β. An attack runs forwards and backwards of one network by the
hundred; PGD-20 on a resnet20 takes 0.79 of the time for it on a CPU (analyses/benchmark/).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from repsim.attacks.traced import TracedForward
from repsim.models.sync_norm import SyncNorm2d

# Of the largest logit: what folding in float32 may change. Measured on a CPU: 1e-6 for a
# resnet20. Convolutions on a GPU are in TF32 by default, with 10 bits.
_TOLERANCE, _TOLERANCE_CUDA = 1e-4, 5e-3
_TOLERANCE_BF16 = 5e-2  # 8 bits in every layer


def faster(model: nn.Module, like: Tensor) -> nn.Module:
    """A copy of `model` with batch normalisation folded away, or `model` where that cannot be.

    The copy is made once for a network and takes over its weights anew at each call, so that it
    is never behind them. It is used only if it returned the same logits for `like` when it was
    made. Networks with hooks, compiled or parallel ones, those without a convolution followed by
    batch normalisation, and those that give another answer to the same images are left alone.
    In autocast both are compared in float32: there is nothing to learn from how they round.

    Args:
        model: in eval mode.
        like: images (batch, c, h, w) as the network will get them.

    Returns:
        A network in eval mode without gradients to its parameters.
    """
    if len(like) == 0 or _special(model):
        return model
    with torch.autocast(like.device.type, enabled=False):
        return _faster(model, like)


def _faster(model: nn.Module, like: Tensor) -> nn.Module:
    modules = list(model.modules())
    known = _copies.get(model)
    if known is None or not known.fits(modules, like):
        known = _copies[model] = _make(model, modules, like)
    if known.net is None:
        return model
    known.refresh()
    # A forward of two images also sees what no list of weights does: another attribute, a tensor
    # put in the place of one.
    if not _same(model, known.net, like[:2]):
        known = _copies[model] = _make(model, modules, like)
    return model if known.net is None else known.net


def compiled(model: nn.Module, like: Tensor) -> nn.Module:
    """The faster copy, compiled for any batch size; not compiled where that fails.

    It costs some 20 seconds once and saves about a tenth on a CPU: worth it for minutes of work.
    Unlike `faster` it holds the weights that the network has now. Called in autocast, it is
    compiled for it.

    Args:
        model: in eval mode.
        like: images (batch, c, h, w), two at least, as the network will get them.
    """
    net = faster(model, like)
    try:
        plain = copy.copy(net)
        if isinstance(vars(plain).get("forward"), TracedForward):
            del plain.forward
        net = copy.deepcopy(plain).requires_grad_(False)
        quick = cast(nn.Module, torch.compile(net, dynamic=True))
        x = like.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            torch.autograd.grad(quick(x).sum(), x)
        return quick if _same(model, quick, like) else net
    except Exception:  # no compiler, or a network that it cannot take
        return net


@dataclass
class _Copy:
    """A folded copy, or the knowledge that there is none.

    Attributes:
        net: the copy.
        modules: of the original, but for the root, which the cache must not keep alive.
        like: dtype and device of the images.
        tensors: (original, copy) of parameters and buffers to be taken over as they are.
        pairs: (convolution, normalisation, folded convolution).
    """

    net: nn.Module | None
    modules: list[nn.Module]
    like: tuple[torch.dtype, torch.device]
    tensors: list[tuple[Tensor, Tensor]]
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]]

    def fits(self, modules: list[nn.Module], like: Tensor) -> bool:
        """Whether the original still has the modules and tensors that were copied."""
        same = len(modules) == len(self.modules) + 1 and all(
            a is b for a, b in zip(modules[1:], self.modules, strict=True)
        )
        where = all(a.device == b.device and a.dtype == b.dtype for a, b in self.tensors)
        return same and where and (like.dtype, like.device) == self.like

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights that the original has now."""
        wanted = [(mine, original) for original, mine in self.tensors]
        for conv, norm, folded in self.pairs:
            weight, bias = _fold(conv, norm)
            assert folded.bias is not None
            wanted += [(folded.weight, weight), (folded.bias, bias)]
        # On a GPU each comparison would wait for it, and there is no trace to keep.
        changed = [
            (mine, now)
            for mine, now in wanted
            if mine.is_cuda or not torch.equal(mine, now.to(mine.dtype))
        ]
        for mine, now in changed:
            mine.copy_(now)
        if changed and isinstance(forward := vars(self.net).get("forward"), TracedForward):
            forward.forget()


_copies: WeakKeyDictionary[nn.Module, _Copy] = WeakKeyDictionary()


def _special(model: nn.Module) -> bool:
    """Whether a copy would not behave as the network does, or would not be seen by its user."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return True
    for module in model.modules():
        if hasattr(module, "_orig_mod") or hasattr(module, "parametrizations"):
            return True
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return True
        if module._backward_pre_hooks or module.training:
            return True
        # A forward put on the object itself: the copy's would be that of its class.
        if "forward" in vars(module):
            return True
    return False


def _make(model: nn.Module, modules: list[nn.Module], like: Tensor) -> _Copy:
    none = _Copy(None, modules[1:], (like.dtype, like.device), [], [])
    if not any(type(module) in (nn.BatchNorm2d, SyncNorm2d) for module in modules):
        return none
    try:
        net = copy.deepcopy(model)
    except Exception:  # whatever a user's module cannot copy
        return none
    names = _followed_by_norm(net, like[:2])
    originals, mine = dict(model.named_modules()), dict(net.named_modules())
    pairs = []
    for conv_name, norm_name in names:
        conv, norm, folded = originals[conv_name], originals[norm_name], mine[conv_name]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(folded, nn.Conv2d)
        if folded.bias is None:
            folded.bias = nn.Parameter(folded.weight.new_zeros(len(folded.weight)))
        parent, _, child = norm_name.rpartition(".")
        setattr(mine[parent], child, nn.Identity())
        pairs.append((conv, norm, folded))
    net.eval().requires_grad_(False)
    net.to(memory_format=torch.channels_last)
    handled = {id(t) for conv, norm, _ in pairs for t in (*conv.parameters(), *_state(norm))}
    theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    ours = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    tensors = [(t, ours[name]) for name, t in theirs.items() if id(t) not in handled]
    made = _Copy(net, modules[1:], (like.dtype, like.device), tensors, pairs)
    made.refresh()
    if not pairs or not _same(model, net, like[:8]):
        return none
    net.forward = TracedForward(net)
    return made


def _state(norm: nn.BatchNorm2d) -> list[Tensor]:
    return [*norm.parameters(), *norm.buffers()]


def _followed_by_norm(net: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the normalisations that take exactly their output.

    Found by running the network, so that it does not matter how its forward is written.
    """
    outputs: list[tuple[Tensor, str]] = []  # keeps them alive, so that none is mistaken
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}
    handles = []
    for name, module in net.named_modules():
        if type(module) is nn.Conv2d:

            def after(m: nn.Module, a: tuple[Tensor, ...], out: Tensor, n: str = name) -> None:
                calls[n] = calls.get(n, 0) + 1
                outputs.append((out, n))

            handles.append(module.register_forward_hook(after))
        elif (
            type(module) in (nn.BatchNorm2d, SyncNorm2d)
            and module.running_mean is not None
            and name
        ):

            def before(m: nn.Module, a: tuple[Tensor, ...], n: str = name) -> None:
                calls[n] = calls.get(n, 0) + 1
                pairs.extend((conv, n) for out, conv in outputs if a and a[0] is out)

            handles.append(module.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    # One that runs twice would be folded for both.
    return [(conv, norm) for conv, norm in pairs if calls[conv] == 1 and calls[norm] == 1]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (out, in, kh, kw) and bias (out,) of both as one convolution, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double()
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    return conv.weight.double() * scale.view(-1, 1, 1, 1), bias


@torch.no_grad()
def _same(model: nn.Module, net: nn.Module, images: Tensor) -> bool:
    """Whether both give the same logits; a network that draws at random does not."""
    wanted, found = model(images), net(images)
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return False
    if wanted.shape != found.shape or not bool(torch.isfinite(wanted).all()):
        return False
    scale = wanted.float().abs().amax().clamp_min(1e-6)
    tolerance = _TOLERANCE_CUDA if images.is_cuda else _TOLERANCE
    if torch.is_autocast_enabled(images.device.type):
        tolerance = _TOLERANCE_BF16
    return bool((wanted.float() - found.float()).abs().amax() <= tolerance * scale)
