"""What attacks share: a frozen network, and checks of what goes in and comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repsim.attacks.fast import faster
from repsim.errors import UserError


@contextmanager
def frozen(
    model: nn.Module, *, train_mode: bool = False, like: Tensor | None = None
) -> Iterator[nn.Module]:
    """The network with no gradient to its parameters, in eval mode; as before afterwards.

    Args:
        model: any network.
        train_mode: every module keeps the mode it has, so that an attack inside training may
            use batch statistics; the running statistics then move, as they do in the papers'
            code.
        like: images; where given (and not `train_mode`), what is yielded may be a faster copy
            that computes the same: see `repsim.attacks.fast`.

    Yields:
        The network to call.
    """
    modes = {module: module.training for module in model.modules()}
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        if not train_mode:
            model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield model if train_mode or like is None else faster(model, like)
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def check_inputs(inputs: Tensor, labels: Tensor | None) -> None:
    """Refuse what an attack in pixel units cannot mean.

    Raises:
        UserError: images that are not float, are outside [0, 1] (normalised ones are the
            commonest mistake) or hold NaN; another number of labels than images.
    """
    if not inputs.is_floating_point():
        raise UserError(f"images expect float pixels in [0, 1]; got {inputs.dtype}; divide by 255")
    if labels is not None and len(inputs) != len(labels):
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


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse outputs that are no logits, and labels that are none of its classes.

    Raises:
        UserError: logits not (batch, classes), or probabilities; labels not int64 or outside
            [0, classes).
    """
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(labels):
        came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"the model is expected to return logits of shape ({len(labels)}, classes); got {came}"
        )
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise UserError(
            f"labels expect int64 of shape (batch,); got {labels.dtype} of {tuple(labels.shape)}"
        )
    if len(labels) == 0:
        return
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0 or high >= logits.shape[1]:
        raise UserError(
            f"labels expect classes 0 to {logits.shape[1] - 1}, as many as the model has logits; "
            f"got {low if low < 0 else high}"
        )
    if logits.shape[1] < 2:
        raise UserError("the model is expected to return logits of at least 2 classes; got 1")
    values = logits.detach().float()
    # Rounded to 8 bits, as many probabilities as there are classes may miss 1 by this much.
    slack = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    if bool((values >= 0).all() & ((values.sum(1) - 1).abs() < slack).all()):
        raise UserError(
            "the model is expected to return logits; got probabilities (each row is at least 0 and "
            "sums to 1): the gradient vanishes where softmax saturates, and the attack would look "
            "weak for it; return what goes into the softmax"
        )


def check_finite(loss: Tensor) -> None:
    """Refuse losses or images that are not finite: such an attack has not attacked anything.

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
