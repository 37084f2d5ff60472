"""Supervised training, standard or adversarial."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def supervised(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Callable[[Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """CE(f(x), y), or CE(f(x + δ), y) with the attack's δ (Madry et al. 2018, equation 2.1).

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        images: augmented images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        attack: (images, labels) -> attacked images; None trains on the images themselves.

    Returns:
        The loss, a scalar, and {"accuracy": fraction of the images it saw that were right}.
    """
    if attack is not None:
        images = attack(images, labels)
    logits = model(images)
    accuracy = (logits.detach().argmax(1) == labels).float().mean()
    return F.cross_entropy(logits.float(), labels), {"accuracy": accuracy}
