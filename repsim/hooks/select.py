"""Choosing layers: `blocks`, `leaf`, `all` or shell patterns on names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from repsim.errors import UserError
from repsim.hooks.modules import unwrap
from repsim.hooks.trace import Call, Layer, Trace, has_matrix, trace_calls
from repsim.registry import near


@dataclass(frozen=True)
class Selection:
    """Chosen layers in execution order, and a note where the choice was not the one asked for."""

    layers: list[Layer]
    note: str | None = None


def select_layers(
    model: nn.Module, inputs: Tensor, layers: str | Sequence[str] = "blocks"
) -> Selection:
    """Choose layers by a keyword, by a shell pattern on their names, or by several of those.

    `blocks`: the stem's output, the output of every residual or transformer block, the pooled
    features. A block is a module (neither a leaf nor a mere container) with weights that is an
    element of a Sequential or ModuleList, and modules of its class run at least twice so; the
    outermost such, but a stage that only hands on what its last block gave is looked into. The
    stem's output is the last layer ready before the first block starts, the pooled features the
    last one ready before the head. A model without blocks falls back to its top-level children,
    with a note.
    `leaf`: every layer with no layer inside. `all`: every layer. (A module that is itself called
    `blocks` is chosen by the pattern `block[s]`.)

    Args:
        model: pixel model or bare encoder, wrapped or not.
        inputs: (batch, channels, height, width), what `model` takes; at most seven are used.
        layers: `blocks`, `leaf`, `all`, a pattern such as `layer3.*.conv2`, or a list of those.

    Raises:
        UserError: a pattern matches no layer; the model has no layers at all; no inputs.
    """
    traced = trace_calls(model, inputs)
    if not traced.places:
        raise UserError(
            f"{type(unwrap(model)).__name__} has no layers to choose from: expected an encoder "
            "that calls torch.nn modules before its head"
        )
    note = None
    chosen: set[int] = set()
    for wanted in [layers] if isinstance(layers, str) else layers:
        if wanted == "blocks":
            blocks = _blocks(traced)
            if not blocks:
                blocks = _outermost(traced)
                note = (
                    "no repeated residual or transformer blocks in this model: blocks means its "
                    f"{len(blocks)} top-level layers"
                )
            chosen |= blocks
        elif wanted == "leaf":
            chosen |= {i for i in traced.places if traced.calls[i].leaf}
        elif wanted == "all":
            chosen |= set(traced.places)
        else:
            chosen |= _matching(traced, wanted)
    return Selection([traced.layer(i) for i in traced.places if i in chosen], note)


def _blocks(traced: Trace) -> set[int]:
    """Stem, blocks and pooled features; empty if there are no blocks."""
    calls = traced.calls
    units = _repeated(traced, [i for i in traced.places if _is_unit(calls[i])])
    listed = _repeated(traced, [i for i in units if _is_listed(traced, i)])
    # A stage hands on what its last block gave; a block adds its shortcut to what is inside it.
    stages = {i for i in units for j in listed if _inside(traced, j, i) and _hands_on(traced, i, j)}
    # Inside a unit that is no element of a list (an inception module) are branches, not blocks.
    outer = [i for i in units if i not in stages]
    blocks = [i for i in listed if i in outer and not any(_inside(traced, i, j) for j in outer)]
    if not blocks:
        return set()

    first = min(calls[i].started for i in blocks)
    stem = [i for i in traced.places if i < first][-1:]
    head = len(calls) if traced.head is None else traced.head
    pooled = [i for i in traced.places if blocks[-1] < i < head][-1:]
    # With a functional pooling the last layer is a container that hands on the last block.
    pooled = [i for i in pooled if not _hands_on(traced, i, blocks[-1])]
    return {*stem, *blocks, *pooled}


def _is_unit(call: Call) -> bool:
    """Is it a module with modules and weight matrices inside, and no mere container?"""
    # A subclass of Sequential with a forward of its own is no mere container.
    container = type(call.module).forward is nn.Sequential.forward
    return not call.leaf and not container and has_matrix(call.module)


def _is_listed(traced: Trace, i: int) -> bool:
    """Is it an element of a Sequential, ModuleList or ModuleDict?"""
    parent = traced.modules[traced.calls[i].base.rpartition(".")[0]]
    return isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _repeated(traced: Trace, places: list[int]) -> list[int]:
    """Those whose class is at least twice among them."""
    classes = Counter(type(traced.calls[i].module) for i in places)
    return [i for i in places if classes[type(traced.calls[i].module)] > 1]


def _inside(traced: Trace, inner: int, outer: int) -> bool:
    return traced.calls[inner].base.startswith(traced.calls[outer].base + ".")


def _hands_on(traced: Trace, later: int, earlier: int) -> bool:
    """Is the later output the earlier one, unchanged?"""
    return traced.calls[later].value == traced.calls[earlier].value


def _outermost(traced: Trace) -> set[int]:
    """Layers inside no other layer: the top-level children.

    Inside a container that never runs (ModuleList) or holds the head, its children stand for it.
    """
    places = traced.places
    return {i for i in places if not any(_inside(traced, i, outer) for outer in places)}


def _matching(traced: Trace, pattern: str) -> set[int]:
    """Layers whose full name matches the shell pattern, case-sensitively."""
    names = {traced.calls[i].name: i for i in traced.places}
    if found := {i for name, i in names.items() if fnmatchcase(name, pattern)}:
        return found
    ran = {call.base for call in traced.calls}
    head = {traced.calls[i].name for i in traced.excluded}
    why = "matches no layer"
    for reason, others in (
        ("is the head, which is no layer", head),
        (
            "gives no (batch, ...) tensor",
            {call.name for call in traced.calls} - names.keys() - head,
        ),
        ("never runs", traced.modules.keys() - ran - {""}),
    ):
        if same := sorted(name for name in others if fnmatchcase(name, pattern)):
            why = f"matches only what {reason} ({', '.join(same[:3])})"
            break
    raise UserError(f"layer pattern {pattern!r} {why}; near: {near(pattern, names)}")
