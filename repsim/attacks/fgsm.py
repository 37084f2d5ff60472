"""The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repsim.attacks.ball import check_ball, project, steepest
from repsim.attacks.gradient import check_finite, check_inputs, frozen
from repsim.attacks.objective import Classify, value, value_and_gradient
from repsim.losses import cross_entropy


def fgsm(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """One step of the full size from the clean image: x + eps · sign(∇ₓ CE(f(x), y)).

    For l2 the gradient over its norm takes the place of the sign ("fast gradient method"), for l1
    the signs of its largest entries over their number.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units.
        norm: "linf", "l2" or "l1".
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), the cross-entropy at the result, and
            `first_success` (batch,), 1 where it is misclassified and -1 elsewhere.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: images outside [0, 1]; an eps or norm that cannot be meant; a
            loss or gradient that is not finite (in train_mode with a record only).
    """
    check_ball(eps, norm)
    check_inputs(inputs, labels)
    inputs = inputs.detach()
    rows = torch.arange(len(inputs), device=inputs.device)
    with frozen(model, train_mode=train_mode) as net:
        objective = Classify(net, labels, cross_entropy)
        _, gradient, _ = value_and_gradient(objective, inputs, rows)
        attacked = project(inputs + eps * steepest(gradient, norm, inputs), inputs, eps, norm)
        if not train_mode:  # in training the loss shows it
            check_finite(attacked)
        if record is not None:
            loss, fooled = value(objective, attacked, rows)
            check_finite(loss)
            record.update(loss=loss, first_success=fooled.long() * 2 - 1)
    return attacked
