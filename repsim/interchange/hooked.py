"""The rows of a tool that hooks every module and keeps what the hook was given.

torch_cka (version 0.21) puts a forward hook on each of `named_modules()`, the network itself
included, and stores the output tensor under the module's name in a dictionary. So

- the rows are in the order in which the modules *first* gave an output, while its list of names is
  in the order of `named_modules()`, where a container comes before what is in it;
- a module that runs several times has one row, at the place of its first call, with the output of
  its last;
- the tensor is kept, not copied: what is written into its memory later shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.hooks.modules import observed, unwrap
from repsim.hooks.record import NETWORK, digest, record, undone
from repsim.hooks.trace import TRACE_BATCH
from repsim.registry import near


@dataclass(frozen=True)
class HookedRow:
    """A row of such a tool.

    Attributes:
        module: its name in `named_modules()` of the bare encoder; "" is the encoder itself.
        layer: the call whose output the row holds: the module's name, name@k where that is the
            k-th of several, `(network)` for the encoder itself.
        changed_by: the module that wrote into the output after it was kept; "" if none did.
        refused: why the tool cannot take this output; "" if it can.
    """

    module: str
    layer: str
    changed_by: str
    refused: str


def hooked_rows(
    model: nn.Module, images: Tensor, names: Sequence[str] | None = None
) -> list[HookedRow]:
    """The rows in the tool's order, found by running a few images.

    Args:
        model: pixel model or bare encoder.
        images: (batch, channels, height, width); at most seven are used.
        names: the modules that have a hook; all by default.

    Raises:
        UserError: no images, or no such module.
    """
    if len(images) == 0:
        raise UserError("finding the order in which modules run expects an image; got none")
    known = [name for name, _ in unwrap(model).named_modules()]
    if missing := sorted(set(names or ()) - set(known)):
        raise UserError(
            f"the model has no module {missing[0]!r}"
            + (f" and {len(missing) - 1} more of those named" if len(missing) > 1 else "")
            + f"; near: {near(missing[0], [name for name in known if name])}"
        )
    with undone(model), observed(model), torch.no_grad():
        outputs = record(model, images[torch.arange(TRACE_BATCH) % len(images)], keep=True)
    last = {one.base: one for one in outputs}  # in the order of the first calls
    rows = []
    for base, one in last.items():
        module = "" if base == NETWORK else base
        if names is not None and module not in names:
            continue
        changed = one.tensor is not None and digest(one.tensor) != one.digest
        by = (one.changed_by[0] if one.changed_by else "an operation") if changed else ""
        refused = f"a {one.container}, not a tensor" if one.container else one.refused
        rows.append(HookedRow(module, one.name, by, refused))
    return rows
