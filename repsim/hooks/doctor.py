"""What can go wrong with hooks on a model: one batch, and a list of what was found.

Nothing here is an error of the model. Each finding is a place where a tool that hooks modules and
keeps their outputs gives a wrong number, a wrong name or no number; `ADVICE` says what repsim does
there and what its user should.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.hooks.modules import named_modules, observed, unwrap
from repsim.hooks.record import NETWORK, Output, digest, fired, record, undone
from repsim.hooks.trace import TRACE_BATCH, trace

ADVICE = {
    "never runs": "no hook fires: such a module has no activations; choose what it is part of",
    "runs again": "each call is a layer of its own, name@2 and so on; a tool that keeps one output "
    "a module shows the last call only",
    "nested output": "the first tensor is the layer; for another one, give it a module of its own "
    "(nn.Identity)",
    "no activation": "left out: a layer is floating-point values (batch, features...)",
    "changed in place": "repsim copies or uses an output at once, so its values are right; tools "
    "that keep the tensor show what it became",
    "duplicate": "equal content: leave one of them out, or means over layers count it twice",
    "view": "the same memory: it costs no more to keep, and a change in place changes both",
    "fused": "computed in one operation that calls no hooks; use the layer around it, or switch "
    "the fast path off",
    "random": "differs between two runs in eval mode: similarities move with it; fix its seed or "
    "replace it by nn.Identity",
    "changes a buffer": "the model is not the same after a run in eval mode; compare fresh copies",
    "constant": "the same for every image: its similarity is not defined (nan)",
    "not finite": "NaN or infinity: its similarity cannot be computed; look at the layers before",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: a key of `ADVICE`.
        layer: name of the module, or name@k for its k-th call; `(network)` is the encoder itself.
        detail: what exactly.
        other: the layer that it shares content or memory with, or that changed it; "" if none.
    """

    kind: str
    layer: str
    detail: str
    other: str = ""


@dataclass(frozen=True)
class Checkup:
    """What `examine` found.

    Attributes:
        modules: number of modules, the encoder itself not counted.
        layers: names of the layers in execution order, as `trace` gives them.
        findings: in the order of `ADVICE`, then of execution.
        notes: checks that could not be made.
    """

    modules: int
    layers: list[str]
    findings: list[Finding]
    notes: list[str]

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind.

        Raises:
            UserError: no such kind.
        """
        if kind not in ADVICE:
            raise UserError(f"findings expect a kind among {', '.join(ADVICE)}; got {kind!r}")
        return [one for one in self.findings if one.kind == kind]


def examine(model: nn.Module, inputs: Tensor) -> Checkup:
    """Run one batch several times and say what hooks get to see.

    The model runs twice in eval mode as `capture` runs it, once so with torch's fast paths, once
    with gradients, and once in train mode; its buffers, modes, gradients and the random state are
    afterwards as before. The outputs of seven images are held in memory.

    Args:
        model: pixel model or bare encoder, wrapped or not.
        inputs: (batch, channels, height, width), what `model` takes; at most seven are used.
            Images that differ, or every layer looks constant.

    Raises:
        UserError: no inputs, or the model cannot run them.
    """
    if len(inputs) == 0:
        raise UserError("a check of the hooks expects at least one image; got none")
    images = inputs[torch.arange(TRACE_BATCH) % len(inputs)]
    notes: list[str] = []
    modules = named_modules(unwrap(model))
    with undone(model):
        buffers = {name: value.detach().clone() for name, value in unwrap(model).named_buffers()}
        with observed(model), torch.no_grad():
            try:
                layers = [layer.name for layer in trace(model, images)]
                outputs = record(model, images, keep=True)
            except UserError:
                raise
            except Exception as error:  # whatever a user's forward raises
                raise UserError(
                    f"{type(unwrap(model)).__name__} expects other inputs than images of shape "
                    f"{tuple(images.shape[1:])}: {type(error).__name__}: {error}; try another "
                    "--image-size or --data"
                ) from error
            changed = _changed_buffers(model, buffers)
            again = record(model, images, keep=False)
        counts = _counts(model, images, outputs, notes)
    order = {name: place for place, name in enumerate(ADVICE)}
    findings = [
        *_silent(modules, counts),
        *_outputs(outputs),
        *_in_place(outputs),
        *_shared(outputs, set(layers)),
        *_random(outputs, again),
        *changed,
    ]
    findings.sort(key=lambda one: order[one.kind])
    return Checkup(len(modules) - 1, layers, findings, notes)


Ran = dict[str, set[str] | None]


def _counts(model: nn.Module, images: Tensor, outputs: list[Output], notes: list[str]) -> Ran:
    """Which modules run: as captured, with fast paths, with gradients, in train mode."""
    captured = {"" if one.base == NETWORK else one.base for one in outputs}
    ran: Ran = {"captured": captured, "plain": None, "gradients": None, "train": None}
    compiled = [
        module
        for module in model.modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]
    if compiled:
        notes.append("compiled: torch calls only hooks that were there before; run here uncompiled")
        return ran
    for way, training, gradients, words in (
        ("plain", False, False, "with torch's fast paths"),
        ("gradients", False, True, "with gradients"),
        ("train", True, True, "in train mode"),
    ):
        with ExitStack() as stack:
            stack.enter_context(undone(model))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradients))
            model.train(training)
            try:
                ran[way] = set(fired(model, images[:2]))
            except Exception as error:  # a forward that cannot train is no reason to stop
                notes.append(
                    f"not checked {words}: the model failed with {type(error).__name__}: {error}"
                )
    return ran


def _silent(modules: dict[str, nn.Module], ran: Ran) -> list[Finding]:
    """Modules that no hook sees, and those that a fast path would hide."""
    captured, plain = ran["captured"] or set(), ran["plain"]
    found = []
    for name, module in modules.items():
        kind = type(module).__name__
        around = name.rpartition(".")[0]
        parent = modules.get(around)
        if name in captured:
            if plain is not None and name not in plain:
                found.append(
                    Finding("fused", name, f"{kind}; skipped in eval mode by a fast path, which "
                            "repsim switches off", around)
                )  # fmt: skip
        elif isinstance(parent, nn.MultiheadAttention):
            found.append(
                Finding("fused", name, f"{kind}; {around} uses its weights and does not call it",
                        around)
            )  # fmt: skip
        elif getattr(parent, "fused_attn", False):
            found.append(
                Finding("fused", name, f"{kind}; {around} computes its attention in one operation "
                        "(fused_attn)", around)
            )  # fmt: skip
        elif name in (ran["gradients"] or ()):
            found.append(
                Finding("fused", name, f"{kind}; runs with gradients only, skipped without", around)
            )
        elif name in (ran["train"] or ()):
            found.append(Finding("never runs", name, f"{kind}; in train mode only"))
        elif isinstance(module, nn.ModuleList | nn.ModuleDict):
            found.append(Finding("never runs", name, f"{kind}; a list, its modules are called"))
        elif around and around in captured and any(True for _ in module.parameters()):
            found.append(
                Finding("never runs", name, f"{kind}; {around} runs and may use its weights itself")
            )
        else:
            found.append(Finding("never runs", name, kind))
    return found


def _outputs(outputs: list[Output]) -> list[Finding]:
    """Each call by itself: repeated, nested, not an activation, without variation."""
    calls: dict[str, int] = {}
    found = []
    for one in outputs:
        calls[one.base] = calls.get(one.base, 0) + 1
    for name, count in calls.items():
        if count > 1:
            found.append(Finding("runs again", name, f"{count} calls: {name} to {name}@{count}"))
    for one in outputs:
        if one.tensor is not None and one.container:
            found.append(
                Finding("nested output", one.name, f"{one.container}; {one.place} is taken, "
                        f"{_shape(one.tensor)}")
            )  # fmt: skip
        if one.refused:
            found.append(Finding("no activation", one.name, one.refused))
    return found


def _in_place(outputs: list[Output]) -> list[Finding]:
    """Outputs whose memory was written again after the module returned."""
    found = []
    for one in outputs:
        if one.tensor is None:
            continue
        same = digest(one.tensor) == one.digest
        if same and not one.changed_by:
            continue
        by = " and ".join(dict.fromkeys(one.changed_by)) or "something autograd does not see"
        kept = "; these images leave its values as they were" if same else ""
        found.append(
            Finding("changed in place", one.name, f"written again by {by}{kept}",
                    one.changed_by[0] if one.changed_by else "")
        )  # fmt: skip
    return found


def _shared(outputs: list[Output], layers: set[str]) -> list[Finding]:
    """Layers with the content or the memory of an earlier one, and those without content."""
    found: list[Finding] = []
    first: dict[bytes, Output] = {}
    memory: dict[int, Output] = {}
    for one in outputs:
        if one.name not in layers or one.tensor is None:
            continue
        if not one.finite:
            found.append(Finding("not finite", one.name, _shape(one.tensor)))
        elif one.constant:
            found.append(Finding("constant", one.name, _shape(one.tensor)))
            continue
        twin = first.setdefault(one.digest, one)
        if twin is not one:
            where = "the same memory" if one.shares_memory(twin) else "a copy"
            found.append(Finding("duplicate", one.name, f"equals {twin.name}; {where}", twin.name))
        origin = memory.setdefault(one.tensor.untyped_storage().data_ptr(), one)
        # The result of an operation in place lies in the memory of its input, but is new content.
        if origin is not one and one.made == origin.made:
            assert origin.tensor is not None
            part = "a part" if one.tensor.numel() < origin.tensor.numel() else "another order"
            part = "all" if one.digest == origin.digest else part
            found.append(Finding("view", one.name, f"{part} of {origin.name}", origin.name))
        elif origin is not one:
            memory[one.tensor.untyped_storage().data_ptr()] = one
    return found


def _random(outputs: list[Output], again: list[Output]) -> list[Finding]:
    """The first layer that differs between two runs; those after it differ because of it."""
    second = {one.name: one for one in again}
    other = [
        one for one in outputs if one.name not in second or second[one.name].digest != one.digest
    ]
    more = {one.name for one in again} - {one.name for one in outputs}
    if other:
        after = f", and so are {len(other) - 1} after it" if len(other) > 1 else ""
        return [Finding("random", other[0].name, f"another output in a second run{after}")]
    return [Finding("random", name, "runs in the second of two runs only") for name in sorted(more)]


def _changed_buffers(model: nn.Module, before: dict[str, Tensor]) -> list[Finding]:
    found = []
    for name, value in unwrap(model).named_buffers():
        old = before.get(name)
        if old is None or old.shape != value.shape or not _same(old, value):
            layer, _, buffer = name.rpartition(".")
            found.append(Finding("changes a buffer", layer or NETWORK, buffer))
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point():
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return torch.equal(a, b)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape[1:])) or "a number"
