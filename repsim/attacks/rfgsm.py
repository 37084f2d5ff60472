"""The fast gradient sign method from a random point (Tramèr et al. 2018, arXiv 1705.07204)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repsim.attacks.ball import check_ball, project, steepest
from repsim.attacks.gradient import check_finite, check_inputs, default_ids, frozen
from repsim.attacks.objective import Classify, value, value_and_gradient
from repsim.errors import UserError
from repsim.keyed import keyed_sign
from repsim.losses import cross_entropy

# Keeps its draws apart from the random starts (streams 0, 1, 2, ...) and from the noise.
_STREAM = 5 << 32


def rfgsm(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    random_step: float | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """x' = x + random_step · random sign; x' + (eps - random_step) · sign(∇ CE(f(x'), y)).

    The random step leaves the neighbourhood of the image, where the gradient of a network that
    was trained with `fgsm` misleads (section 4.1, RAND+FGSM).

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units, linf.
        random_step: size of the random step, α of the paper; eps / 2 by default, as there.
        seed: of the signs, which are keyed by (seed, id).
        ids: int64 (batch,) keys; the position in the batch by default.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), the cross-entropy at the result, and
            `first_success` (batch,), 1 where it is misclassified and -1 elsewhere.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: images outside [0, 1]; sizes that cannot be meant; a loss or gradient
            that is not finite (in train_mode with a record only).
    """
    check_ball(eps, "linf")
    first = eps / 2 if random_step is None else random_step
    if not 0 <= first <= eps:
        raise UserError(f"random_step expects a number between 0 and eps = {eps:g}; got {first!r}")
    check_inputs(inputs, labels)
    inputs, ids = inputs.detach(), default_ids(inputs, ids)
    rows = torch.arange(len(inputs), device=inputs.device)
    sign = keyed_sign(ids, tuple(inputs.shape[1:]), seed=seed, stream=_STREAM).to(inputs.dtype)
    with frozen(model, train_mode=train_mode) as net:
        objective = Classify(net, labels, cross_entropy)
        x = project(inputs + first * sign, inputs, eps, "linf")
        _, gradient, _ = value_and_gradient(objective, x, rows)
        x = project(x + (eps - first) * steepest(gradient, "linf", x), inputs, eps, "linf")
        if not train_mode:  # in training the loss shows it
            check_finite(x)
        if record is not None:
            loss, fooled = value(objective, x, rows)
            check_finite(loss)
            record.update(loss=loss, first_success=fooled.long() * 2 - 1)
    return x
