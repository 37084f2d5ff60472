"""What gradient attacks share: a frozen network and the gradient of a loss to its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.errors import UserError


@contextmanager
def frozen(model: nn.Module, *, train_mode: bool = False) -> Iterator[None]:
    """The network with no gradient to its parameters, in eval mode; as before afterwards.

    With `train_mode` every module keeps the mode it has, so that an attack inside training may
    use batch statistics; the running statistics then move, as they do in the papers' code.
    """
    modes = {module: module.training for module in model.modules()}
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        if not train_mode:
            model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def loss_and_gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Cross-entropy of each image, its gradient to the inputs, and the logits.

    Returns:
        loss (batch,), gradient (batch, ...) like inputs, logits (batch, classes); detached.
    """
    inputs = inputs.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(inputs)
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), inputs)
    return loss.detach(), gradient, logits.detach()


def loss_and_logits(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image (batch,) and the logits, where no gradient is needed."""
    with torch.no_grad():
        logits = model(inputs)
        return F.cross_entropy(logits.float(), labels, reduction="none"), logits


def check_inputs(inputs: Tensor, labels: Tensor) -> None:
    """Refuse what an attack in pixel units cannot mean.

    Raises:
        UserError: images that are not float, are outside [0, 1] (normalised ones are the
            commonest mistake) or hold NaN; another number of labels than images.
    """
    if not inputs.is_floating_point():
        raise UserError(f"images expect float pixels in [0, 1]; got {inputs.dtype}; divide by 255")
    if len(inputs) != len(labels):
        raise UserError(f"labels expects one an image; got {len(labels)} for {len(inputs)} images")
    if len(inputs) == 0:
        return
    low, high = inputs.aminmax()
    bounds = torch.stack([low, high]).tolist()  # one synchronisation instead of two
    if not (bounds[0] >= 0 and bounds[1] <= 1):
        raise UserError(
            f"images expect pixels in [0, 1]; got [{bounds[0]:.3g}, {bounds[1]:.3g}]; pass pixels "
            "and let the model normalise inside (repsim.models.Normalized)"
        )


def check_finite(loss: Tensor) -> None:
    """Refuse losses (batch,) that are not finite: such an attack has not attacked anything.

    Raises:
        UserError: NaN or inf among them.
    """
    if not bool(torch.isfinite(loss).all()):
        raise UserError(
            "the attack expects a finite loss and gradient; the model gave NaN or inf; try "
            "--precision float32, or look for sqrt, log or a division at 0 in the model"
        )


def default_ids(inputs: Tensor, ids: Tensor | None) -> Tensor:
    """Keys of the random draws: the sample ids, or the position in the batch."""
    if ids is None:
        return torch.arange(len(inputs), device=inputs.device)
    return ids.to(inputs.device)
