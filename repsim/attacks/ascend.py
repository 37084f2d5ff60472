"""The engine: projected steps up any objective, in any norm, with restarts and in two modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from repsim.attacks.ball import check_ball, per_image, project, random_start, steepest
from repsim.attacks.gradient import check_finite, default_ids
from repsim.attacks.objective import (
    Objective,
    confirmed,
    exact,
    rounded,
    value,
    value_and_gradient,
)
from repsim.errors import UserError

MODES = ("represent", "evaluate", "last")


def ascend(
    objective: Objective,
    inputs: Tensor,
    *,
    eps: float,
    norm: str,
    steps: int,
    step_size: float | None = None,
    restarts: int = 1,
    start: str = "random",
    momentum: float = 0.0,
    eot: int = 1,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """x ← Π(x + step_size · direction(∇ₓ objective)), Π onto the ball of eps and [0, 1].

    The direction is that of `repsim.attacks.ball.steepest`. Settings are those of
    `repsim.attacks.pgd`, which see; the caller has checked images and settings and frozen the
    network.

    Args:
        objective: what to maximise; see `repsim.attacks.objective`.
        inputs: clean images (batch, c, h, w) in [0, 1].
        momentum: decay μ of g ← μ·g + ∇/‖∇‖₁, whose direction is taken instead of the
            gradient's (Dong et al. 2018, arXiv 1710.06081, equation 6); 0 is none.

    Returns:
        The attacked images, like inputs.
    """
    if mode not in MODES:
        raise UserError(f"mode expects one of {', '.join(MODES)}; got {mode!r}")
    inputs, ids = inputs.detach(), default_ids(inputs, ids)
    if eps == 0 or len(inputs) == 0:  # nothing to climb: the ball is the image
        return unmoved(objective, inputs, eot, record)
    step = 2.5 * eps / steps if step_size is None else step_size

    result, loss, first = _nothing_yet(inputs)
    fooled = torch.zeros_like(first, dtype=torch.bool)
    active = torch.arange(len(inputs), device=inputs.device)
    climb = _Climb(objective, eps, norm, steps, step, momentum, eot)
    for restart in range(restarts):
        clean = inputs[active]
        x = clean
        if start == "random":
            x = random_start(clean, eps, norm, ids=ids[active], seed=seed, restart=restart)
        if mode == "evaluate":
            x, x_loss, x_first = climb.until_fooled(x, clean, active)
            x_fooled = x_first >= 0
        elif mode == "last" and restarts == 1 and record is None:
            return climb.blind(x, clean, active)
        else:
            x, x_loss, x_first, x_fooled = climb.full(
                x, clean, active, keep_best=mode == "represent"
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
    forward of its own. In autocast the steps are in less than float32; what is returned of the
    result (its loss, whether it is misclassified) is in float32.
    """

    objective: Objective
    eps: float
    norm: str
    steps: int
    step: float
    momentum: float
    eot: int

    def move(self, x: Tensor, gradient: Tensor, clean: Tensor) -> Tensor:
        ahead = x.add(steepest(gradient, self.norm, x), alpha=self.step)
        return project(ahead, clean, self.eps, self.norm)

    def gather(self, velocity: Tensor | None, gradient: Tensor) -> Tensor:
        """The direction's source: the gradient, or with momentum its decayed sum."""
        if self.momentum == 0:
            return gradient
        size = per_image(gradient.flatten(1).abs().sum(1), gradient)
        unit = gradient / size.clamp_min(torch.finfo(gradient.dtype).tiny)
        return unit if velocity is None else self.momentum * velocity + unit

    def blind(self, x: Tensor, clean: Tensor, rows: Tensor) -> Tensor:
        """All steps and the last iterate, of which nothing is known."""
        velocity = None
        for _ in range(self.steps):
            _, gradient, _ = value_and_gradient(self.objective, x, rows, self.eot)
            velocity = self.gather(velocity, gradient)
            x = self.move(x, velocity, clean)
        return x

    def full(
        self, x: Tensor, clean: Tensor, rows: Tensor, *, keep_best: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All steps on all images: the strongest iterate or the last, its loss, first success.

        The last tensor says whether the last iterate is misclassified.
        """
        best, best_loss, first = _nothing_yet(x)
        velocity = None
        for k in range(self.steps):
            loss, gradient, fooled = value_and_gradient(self.objective, x, rows, self.eot)
            first = torch.where((first < 0) & fooled, k, first)
            if keep_best and k > 0:  # the start may be the clean image, which is not attacked
                best, best_loss = _better(best, best_loss, x, loss)
            velocity = self.gather(velocity, gradient)
            x = self.move(x, velocity, clean)
        loss, fooled = value(self.objective, x, rows, self.eot)
        check_finite(loss)  # NaN in any step has stayed in x
        first = torch.where((first < 0) & fooled, self.steps, first)
        if keep_best:
            x, loss = _better(best, best_loss, x, loss)
        if rounded(x):
            loss, fooled = exact(self.objective, x, rows, self.eot)
        return x, loss, first, fooled

    def until_fooled(self, x: Tensor, clean: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same trajectories, but an image leaves the batch at its first success."""
        result, final_loss, first = _nothing_yet(x)
        active = torch.arange(len(x), device=x.device)
        velocity = None
        for k in range(self.steps):
            loss, gradient, fooled = value_and_gradient(self.objective, x, rows[active], self.eot)
            loss, fooled = confirmed(self.objective, x, rows[active], loss, fooled, self.eot)
            leaving = torch.nonzero(fooled)[:, 0]
            if len(leaving):
                gone, staying = active[leaving], torch.nonzero(~fooled)[:, 0]
                result[gone], final_loss[gone], first[gone] = x[leaving], loss[leaving], k
                active, clean = active[staying], clean[staying]
                x, gradient = x[staying], gradient[staying]
                velocity = None if velocity is None else velocity[staying]
            if len(active) == 0:
                break
            velocity = self.gather(velocity, gradient)
            x = self.move(x, velocity, clean)
        else:
            loss, fooled = exact(self.objective, x, rows[active], self.eot)
            result[active], final_loss[active] = x, loss
            first[active[fooled]] = self.steps
        check_finite(final_loss)
        return result, final_loss, first


def unmoved(
    objective: Objective, inputs: Tensor, eot: int, record: dict[str, Tensor] | None
) -> Tensor:
    """The images themselves: what a ball of size 0 leaves."""
    if record is not None and len(inputs):
        rows = torch.arange(len(inputs), device=inputs.device)
        loss, fooled = value(objective, inputs, rows, eot)
        check_finite(loss)
        record.update(loss=loss, first_success=fooled.long() - 1)
    elif record is not None:
        _, loss, first = _nothing_yet(inputs)
        record.update(loss=loss, first_success=first)
    return inputs.clone()


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
    step_size: float | None = None,
    restarts: int = 1,
    start: str = "random",
    eot: int = 1,
    **others: object,
) -> None:
    """Refuse settings of an iterative attack that cannot be meant; others are not looked at.

    Raises:
        UserError: names the setting, what was expected and what came.
    """
    check_ball(eps, norm)
    if steps < 1 or restarts < 1 or eot < 1:
        raise UserError(
            f"steps, restarts and eot expect at least 1; got {steps}, {restarts} and {eot}"
        )
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
