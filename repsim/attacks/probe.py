"""The attack on a linear probe of an inner layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.attacks.activation import activations, pooled
from repsim.attacks.ascend import ascend, check_settings
from repsim.attacks.gradient import check_inputs, check_logits
from repsim.errors import UserError
from repsim.losses import cross_entropy


def probe(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    layer: str | None = None,
    eps: float = 8 / 255,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    start: str = "random",
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """max over ‖δ‖ <= eps of CE(W φ(x + δ) + b, y), φ the activation of a layer.

    The adaptive attack on what a probe reads: how robustly is the class in this layer? An attack
    on the network's own output answers that for its last layer only.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> anything.
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        weight: W (classes, features); the features are the flattened activation, in the order of
            (c, h, w), or else, where that fits, its means over positions.
        bias: b (classes,).
        layer: a name that `repsim layers` lists; the pooled features, which the network's head
            takes, by default.
        eps, norm, steps, step_size, restarts, start: see `repsim.attacks.pgd`.
        mode: as in `pgd`; an image is misclassified where the probe's prediction is wrong.
        seed, ids: of the random starts.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` and `first_success` as by `pgd`.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: images outside [0, 1]; no such layer; a weight that fits neither; labels that
            are none of the probe's classes; a setting that cannot be meant; a loss or gradient
            that is not finite.
    """
    check_settings(
        eps=eps, norm=norm, steps=steps, step_size=step_size, restarts=restarts, start=start
    )
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise UserError(
            "a probe expects weight (classes, features) and bias (classes,); got "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    check_inputs(inputs, labels)
    weight, bias = weight.detach().to(inputs.device), bias.detach().to(inputs.device)
    checked = False
    with activations(model, inputs, layer, train_mode=train_mode) as read:

        def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal checked
            logits = _logits(read(x), weight, bias)
            if not checked:  # once: on a GPU each look waits for it
                check_logits(logits, labels[rows])
                checked = True
            return cross_entropy(logits, labels[rows]), logits.detach().argmax(1) != labels[rows]

        return ascend(
            objective, inputs, eps=eps, norm=norm, steps=steps, step_size=step_size,
            restarts=restarts, start=start, mode=mode, seed=seed, ids=ids, record=record,
        )  # fmt: skip


def _logits(activation: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(batch, classes) of an activation (batch, ...)."""
    wanted = weight.shape[1]
    features = activation.flatten(1)
    if features.shape[1] != wanted:
        means = pooled(activation)
        if means.shape[1:] != (wanted,):
            raise UserError(
                f"the probe's weight expects {wanted} features; the layer has "
                f"{tuple(activation.shape[1:])}: {features.shape[1]} flattened, "
                f"{means.shape[1]} pooled; try the layer that the probe was trained on"
            )
        features = means
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(features, weight.to(features.dtype), bias.to(features.dtype))
