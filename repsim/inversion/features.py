"""The representation that is inverted: a layer of a frozen network, flattened, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repsim.attacks.activation import activations
from repsim.attacks.gradient import frozen
from repsim.errors import UserError

PENULTIMATE, LOGITS = "penultimate", "logits"


@contextmanager
def features(
    model: nn.Module, images: Tensor, layer: str = PENULTIMATE
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The frozen network up to a layer, as a function (batch, c, h, w) -> (batch, d).

    Args:
        model: pixel model in [0, 1]; in eval mode inside, as before afterwards.
        images: (batch, c, h, w), to find the layer with.
        layer: "penultimate", the pooled features that the network's head takes; "logits", what
            the network returns; or a name that `repsim layers` lists.

    Raises:
        UserError: there is no such layer; in the function: the layer gives not one row of numbers
            an image.
    """
    if layer == LOGITS:
        with frozen(model, like=images) as net:
            yield lambda x: _logits(net(x), len(x))
        return
    name = None if layer == PENULTIMATE else layer
    with activations(model, images, name) as read:
        yield lambda x: read(x).flatten(1)


def read_all(
    model: nn.Module, images: Tensor, layer: str = PENULTIMATE, *, batch_size: int = 256
) -> Tensor:
    """The representation of all images, (samples, d), at least float32, without gradients.

    Raises:
        UserError: as in `features`.
    """
    with torch.no_grad(), features(model, images, layer) as read:
        return torch.cat([read(part) for part in images.split(batch_size)])


def _logits(output: object, rows: int) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != rows:
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"layer logits expects a network that returns ({rows}, classes); got {came}; choose "
            "another layer"
        )
    return output.flatten(1).to(torch.promote_types(output.dtype, torch.float32))
