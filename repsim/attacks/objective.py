"""What an attack climbs: objectives, their values and their gradients to the images.

An objective is called with iterates x (batch, c, h, w) and `rows` int64 (batch,), which of the
attacked images they are, and returns two tensors (batch,): the loss, which the attack maximises,
and whether the goal is reached (`fooled`). Objectives without labels never call it reached. An
objective that couples the images of a batch (contrastive ones, CKA) needs them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from repsim.attacks.gradient import check_logits
from repsim.losses import kl


class Objective(Protocol):
    """(iterates (batch, ...), rows (batch,)) -> (loss (batch,), fooled (batch,) bool)."""

    def __call__(self, x: Tensor, rows: Tensor, /) -> tuple[Tensor, Tensor]: ...


@dataclass
class Classify:
    """A loss of the logits; reached where the label is not the prediction.

    Attributes:
        net: pixel model -> logits.
        labels: int64, of all attacked images.
        loss: (logits, labels) -> (batch,); see `repsim.losses`.
    """

    net: nn.Module
    labels: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    _checked: bool = field(default=False, init=False, repr=False)

    def __call__(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`.

        Raises:
            UserError: at the first call, outputs that are no logits or labels that do not fit.
        """
        logits, labels = self.net(x), self.labels[rows]
        if not self._checked:  # once: on a GPU each look waits for it
            check_logits(logits, labels)
            self._checked = True
        logits = logits.float()
        return self.loss(logits, labels), logits.detach().argmax(1) != labels


@dataclass(frozen=True)
class Divergence:
    """KL from the clean prediction; reached where the label is not the prediction.

    Attributes:
        net: pixel model -> logits.
        labels: int64, of all attacked images.
        clean: logits of all clean images.
    """

    net: nn.Module
    labels: Tensor
    clean: Tensor

    def __call__(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        logits = self.net(x).float()
        return kl(logits, self.clean[rows]), logits.detach().argmax(1) != self.labels[rows]


def value(objective: Objective, x: Tensor, rows: Tensor, eot: int = 1) -> tuple[Tensor, Tensor]:
    """Loss and fooled, (batch,) each, where no gradient is needed; see `value_and_gradient`."""
    with torch.no_grad():
        if eot == 1:
            loss, fooled = objective(x, rows)
            return loss.float(), fooled
        draws = [objective(x, rows) for _ in range(eot)]
    votes = torch.stack([fooled for _, fooled in draws]).float().mean(0)
    return torch.stack([loss for loss, _ in draws]).float().mean(0), votes > 0.5


def exact(objective: Objective, x: Tensor, rows: Tensor, eot: int = 1) -> tuple[Tensor, Tensor]:
    """`value` in float32, for what is reported of an attack whose steps are in less."""
    with torch.autocast(x.device.type, enabled=False):
        return value(objective, x, rows, eot)


def rounded(x: Tensor) -> bool:
    """Whether forwards of these images run in less than float32 here."""
    return torch.is_autocast_enabled(x.device.type)


def confirmed(
    objective: Objective, x: Tensor, rows: Tensor, loss: Tensor, fooled: Tensor, eot: int = 1
) -> tuple[Tensor, Tensor]:
    """Loss and fooled (batch,), where an image looks fooled as they are in float32.

    One that leaves an attack for a rounding of bfloat16 would come back as robust.
    """
    seeming = torch.nonzero(fooled)[:, 0]
    if not rounded(x) or len(seeming) == 0:
        return loss, fooled
    loss, fooled = loss.clone(), fooled.clone()
    loss[seeming], fooled[seeming] = exact(objective, x[seeming], rows[seeming], eot)
    return loss, fooled


def value_and_gradient(
    objective: Objective, x: Tensor, rows: Tensor, eot: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (batch,), its gradient like x, and fooled (batch,); detached.

    Args:
        objective: what to climb.
        x: iterates (batch, c, h, w).
        rows: int64 (batch,).
        eot: forwards and backwards to average over, for networks that draw at random
            (expectation over transformations, Athalye et al. 2018, arXiv 1802.00420); an image
            is then fooled where more than half of the draws are.
    """
    x = x.detach().requires_grad_(True)
    losses, gradients, votes = [], [], []
    for _ in range(eot):
        with torch.enable_grad():
            loss, fooled = objective(x, rows)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        losses.append(loss.detach().float())
        gradients.append(gradient)
        votes.append(fooled)
    if eot == 1:
        return losses[0], gradients[0], votes[0]
    share = torch.stack(votes).float().mean(0)
    return torch.stack(losses).mean(0), torch.stack(gradients).mean(0), share > 0.5
