"""Losses of logits, image by image: what attacks climb. Pure functions of tensors.

All of them grow as the network is more wrong, so an attack maximises them. Shapes: logits
(batch, classes), labels and targets int64 (batch,); a loss is (batch,) float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from repsim.errors import UserError


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{i≠y} z_i - z_y: above 0 exactly where the image is misclassified (ties apart).

    Carlini and Wagner 2017 (arXiv 1608.04644), f6 with its sign turned.
    """
    logits = logits.float()
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - own


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: (max_{i≠y} z_i - z_y) / (z_π1 - z_π3), π sorts downwards.

    Croce and Hein 2020 (arXiv 2003.01690), equation 6: free of the scale and shift of logits.

    Raises:
        UserError: fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise UserError(f"loss dlr expects at least 3 classes; got {logits.shape[1]}; try ce")
    logits = logits.float()
    top = logits.topk(3, dim=1).values
    own = logits.gather(1, labels[:, None])[:, 0]
    # The best other class is the second where the label is the first, and the first elsewhere.
    # Taken from the sorted logits, so that ties share their gradient as sorting does.
    first = logits.argmax(1) == labels
    best_other = torch.where(first, top[:, 1], top[:, 0])
    return (best_other - own) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(z_t - z_y) / (z_π1 - (z_π3 + z_π4) / 2), π sorts downwards.

    Croce and Hein 2020 (arXiv 2003.01690), equation 7.

    Raises:
        UserError: fewer than 4 classes.
    """
    if logits.shape[1] < 4:
        raise UserError(
            f"the targeted dlr loss expects at least 4 classes; got {logits.shape[1]}; try ce"
        )
    logits = logits.float()
    top = logits.topk(4, dim=1).values
    own = logits.gather(1, labels[:, None])[:, 0]
    target = logits.gather(1, targets[:, None])[:, 0]
    return (target - own) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def kl(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(z)): how far the prediction moved; needs no labels.

    TRADES' inner maximisation (Zhang et al. 2019, arXiv 1901.08573, equation 3).
    """
    clean = F.log_softmax(clean_logits.float(), dim=1)
    return F.kl_div(
        F.log_softmax(logits.float(), dim=1), clean, reduction="none", log_target=True
    ).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "margin": margin,
}
