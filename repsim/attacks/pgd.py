"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083, equation 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repsim.attacks.ball import check_ball, per_image, project, random_start, steepest
from repsim.attacks.gradient import (
    check_finite,
    check_inputs,
    default_ids,
    frozen,
    loss_and_gradient,
    loss_and_logits,
)
from repsim.errors import UserError

MODES = ("represent", "evaluate", "last")


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
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
    """x ← Π(x + step_size · direction(∇ₓ CE(f(x), y))), Π onto the ball of eps and [0, 1].

    The direction is the gradient's sign for linf and the gradient over its norm for l2.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units.
        norm: "linf" or "l2".
        steps: gradient steps of each restart.
        step_size: in pixel units; 2.5 · eps / steps by default.
        restarts: independent runs; needs random starts to differ.
        start: "random" (uniform in the ball) or "clean".
        mode: what the result is for.
            "represent": full strength, nothing stops at success; of all iterates after a step
            the one with the highest loss (over the restarts as well).
            "evaluate": an image leaves the batch as soon as an iterate (the start included) is
            misclassified, and that iterate is its result; one never fooled ends at its last.
            "last": the last iterate, as the papers' training uses it; of several restarts a
            misclassified one before the others, then the one with the highest loss.
        seed: seed of the random starts, which are keyed by (seed, id, restart).
        ids: int64 (batch,) keys; the position in the batch by default.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), the cross-entropy at the result, and
            `first_success` (batch,), the steps after which an iterate was first misclassified
            (0: the start; the fewest of the restarts that were run), -1 where none was.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: images outside [0, 1]; a setting that cannot be meant; a loss or gradient
            that is not finite (in mode "last" only with a record or restarts: it is not looked
            for in training, where the loss itself shows it).
    """
    check_settings(
        eps=eps, norm=norm, steps=steps, step_size=step_size, restarts=restarts, start=start
    )
    if mode not in MODES:
        raise UserError(f"mode expects one of {', '.join(MODES)}; got {mode!r}")
    check_inputs(inputs, labels)
    inputs, ids = inputs.detach(), default_ids(inputs, ids)
    step = 2.5 * eps / steps if step_size is None else step_size

    result, loss, first = _nothing_yet(inputs)
    fooled = torch.zeros_like(first, dtype=torch.bool)
    active = torch.arange(len(inputs), device=inputs.device)
    climb = _Climb(model, eps, norm, steps, step)
    with frozen(model, train_mode=train_mode):
        for restart in range(restarts):
            clean, y = inputs[active], labels[active]
            x = clean
            if start == "random":
                x = random_start(clean, eps, norm, ids=ids[active], seed=seed, restart=restart)
            if mode == "evaluate":
                x, x_loss, x_first = climb.until_fooled(x, clean, y)
                x_fooled = x_first >= 0
            elif mode == "last" and restarts == 1 and record is None:
                return climb.blind(x, clean, y)
            else:
                x, x_loss, x_first, x_fooled = climb.full(
                    x, clean, y, keep_best=mode == "represent"
                )
            better = x_loss > loss[active]
            if mode != "represent":  # misclassified comes before any loss, or a restart could save
                better = torch.where(x_fooled == fooled[active], better, x_fooled)
            chosen = active[better]
            result[chosen], loss[chosen] = x[better], x_loss[better]
            fooled[chosen] = x_fooled[better]
            earlier = (x_first >= 0) & ((first[active] < 0) | (x_first < first[active]))
            first[active] = torch.where(earlier, x_first, first[active])
            if mode == "evaluate":
                active = active[x_first < 0]
                if len(active) == 0:
                    break
    if record is not None:
        record.update(loss=loss, first_success=first)
    return result


@dataclass(frozen=True)
class _Climb:
    """One run of projected ascent; the three ways to run it differ in what they keep.

    The loss of an iterate comes with the next step's gradient; only the last one's costs a
    forward of its own.
    """

    model: nn.Module
    eps: float
    norm: str
    steps: int
    step: float

    def move(self, x: Tensor, gradient: Tensor, clean: Tensor) -> Tensor:
        ahead = x.add(steepest(gradient, self.norm), alpha=self.step)
        return project(ahead, clean, self.eps, self.norm)

    def blind(self, x: Tensor, clean: Tensor, y: Tensor) -> Tensor:
        """All steps and the last iterate, of which nothing is known."""
        for _ in range(self.steps):
            _, gradient, _ = loss_and_gradient(self.model, x, y)
            x = self.move(x, gradient, clean)
        return x

    def full(
        self, x: Tensor, clean: Tensor, y: Tensor, *, keep_best: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All steps on all images: the strongest iterate or the last, its loss, first success.

        The last tensor says whether the last iterate is misclassified.
        """
        best, best_loss, first = _nothing_yet(x)
        for k in range(self.steps):
            loss, gradient, logits = loss_and_gradient(self.model, x, y)
            first = torch.where((first < 0) & (logits.argmax(1) != y), k, first)
            if keep_best and k > 0:  # the start may be the clean image, which is not attacked
                best, best_loss = _better(best, best_loss, x, loss)
            x = self.move(x, gradient, clean)
        loss, logits = loss_and_logits(self.model, x, y)
        check_finite(loss)  # NaN in any step has stayed in x
        fooled = logits.argmax(1) != y
        first = torch.where((first < 0) & fooled, self.steps, first)
        if keep_best:
            x, loss = _better(best, best_loss, x, loss)
        return x, loss, first, fooled

    def until_fooled(self, x: Tensor, clean: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same trajectories, but an image leaves the batch at its first success."""
        result, final_loss, first = _nothing_yet(x)
        active = torch.arange(len(x), device=x.device)
        for k in range(self.steps):
            loss, gradient, logits = loss_and_gradient(self.model, x, y)
            fooled = logits.argmax(1) != y
            leaving = torch.nonzero(fooled)[:, 0]
            if len(leaving):
                gone, staying = active[leaving], torch.nonzero(~fooled)[:, 0]
                result[gone], final_loss[gone], first[gone] = x[leaving], loss[leaving], k
                active, y, clean = active[staying], y[staying], clean[staying]
                x, gradient = x[staying], gradient[staying]
            if len(active) == 0:
                break
            x = self.move(x, gradient, clean)
        else:
            loss, logits = loss_and_logits(self.model, x, y)
            result[active], final_loss[active] = x, loss
            first[active[logits.argmax(1) != y]] = self.steps
        check_finite(final_loss)
        return result, final_loss, first


def _nothing_yet(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Result, loss and first success before any iterate was looked at."""
    loss = torch.full((len(x),), -torch.inf, device=x.device)
    first = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    return x.clone(), loss, first


def _better(best: Tensor, best_loss: Tensor, x: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the one with the higher loss; of two alike x, which has come further."""
    higher = loss >= best_loss
    return torch.where(per_image(higher, x), x, best), torch.where(higher, loss, best_loss)


def check_settings(
    *,
    eps: float,
    norm: str,
    steps: int,
    step_size: float | None,
    restarts: int,
    start: str,
) -> None:
    """Refuse settings of `pgd` that cannot be meant.

    Raises:
        UserError: names the setting, what was expected and what came.
    """
    check_ball(eps, norm)
    if steps < 1 or restarts < 1:
        raise UserError(f"steps and restarts expect at least 1; got {steps} and {restarts}")
    if step_size is not None:
        if not 0 <= step_size < math.inf or (step_size == 0 and eps > 0):
            raise UserError(f"step_size expects a number above 0; got {step_size!r}")
        if norm == "linf" and step_size > 1:
            raise UserError(
                f"step_size expects pixel units in [0, 1] for linf; got {step_size:g}; try "
                f"{step_size:g}/255"
            )
    if start not in ("random", "clean"):
        raise UserError(f"start expects 'random' or 'clean'; got {start!r}")
    if restarts > 1 and start == "clean":
        raise UserError("restarts above 1 expect random starts: from the clean image all are equal")
