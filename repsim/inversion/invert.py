"""Representation inversion: another image that a network represents like the one given."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repsim.attacks.ball import per_image, steepest
from repsim.attacks.gradient import check_inputs
from repsim.errors import UserError
from repsim.inversion.features import PENULTIMATE, features
from repsim.inversion.starts import starting_images

STEPS = 300
BATCH_SIZE = 128
MOMENTUM = 0.9
# Of the first step, in root mean square over pixel values. On CIFAR-10, 400 steps with .018, .036
# and .072 gave median distances of .0046, .0036, .0029 (standard) and .025, .020, .020 (robust).
STEP_RMS = 0.04


def invert(
    model: nn.Module,
    images: Tensor,
    layer: str = PENULTIMATE,
    *,
    start: str | Tensor = "noise",
    labels: Tensor | None = None,
    steps: int = STEPS,
    step_size: float | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    ids: Tensor | None = None,
    record: dict[str, Tensor] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """x' in [0, 1] that minimises d(x') = ‖g(x') − g(x)‖₂ / ‖g(x)‖₂, g the network up to a layer.

    Mahendran and Vedaldi 2015 (arXiv 1412.0035, equation 1) without a prior on images, as Engstrom
    et al. 2019 (arXiv 1906.00945) and Nanda et al. 2022 (arXiv 2206.11939) do it: a prior would put
    into x' what the network does not see. Descent with l2-normalised gradients and momentum, as
    published with Jones et al. 2022 (UAI, PMLR 180:928), but with a step that falls linearly to 0,
    which gets nearer in fewer steps:

        v ← 0.9·v + 0.1·∇d/‖∇d‖₂,  x' ← clip(x' − step_size·(1 − k/steps)·v, 0, 1)

    The best iterate of each image is kept, the start included. Images do not influence each other.

    Args:
        model: pixel model; in eval mode and frozen meanwhile, as before afterwards.
        images: x, (samples, c, h, w) in [0, 1].
        layer: "penultimate", "logits", or a name that `repsim layers` lists.
        start: "noise", "image" or "grey" (see `starting_images`), or images, one for each.
        labels: int64 (samples,), for start="image" of another class.
        steps: gradient steps.
        step_size: length of the first step, l2 in pixel units; 0.04·√(c·h·w) by default.
        batch_size: images at once; changes no random draw.
        seed: of the starts, which are keyed by (seed, id).
        ids: int64 (samples,) keys; the position by default.
        record: filled with `distance` and `start_distance` (samples,): d at the result and at the
            start, in full precision also where the steps are made in autocast.
        advance: called with 1 after each step of each batch.

    Returns:
        x', like images.

    Raises:
        UserError: images outside [0, 1]; no such layer; a representation that is 0, whose relative
            distance means nothing; a setting that cannot be meant; values that are not finite.
    """
    check_inputs(images, labels)
    if steps < 1 or batch_size < 1:
        raise UserError(f"steps and batch_size expect at least 1; got {steps} and {batch_size}")
    if step_size is None:
        step_size = default_step_size(images)
    if not 0 < step_size < math.inf:
        raise UserError(f"step_size expects a number above 0 in pixel units; got {step_size!r}")
    images = images.detach()
    if isinstance(start, Tensor):
        check_inputs(start, None)
        if start.shape != images.shape:
            raise UserError(
                f"start expects images of the shape {tuple(images.shape)}; got {tuple(start.shape)}"
            )
    else:
        start = starting_images(images, start, labels=labels, seed=seed, ids=ids)
    start = start.detach().to(images)
    results, before, after = [], [], []
    for x, begin in zip(images.split(batch_size), start.split(batch_size), strict=True):
        with features(model, x, layer) as read:
            found, first, last = _descend(read, x, begin, layer, steps, step_size, advance)
        results.append(found)
        before.append(first)
        after.append(last)
    if record is not None:
        record.update(distance=torch.cat(after), start_distance=torch.cat(before))
    return torch.cat(results) if results else images.clone()


def default_step_size(images: Tensor) -> float:
    """0.04·√(c·h·w): a first step of 0.04 root mean square over pixel values."""
    return STEP_RMS * math.sqrt(math.prod(images.shape[1:]))


def relative_distance(found: Tensor, target: Tensor) -> Tensor:
    """‖a − t‖₂ / ‖t‖₂ of each row: (batch, d), (batch, d) -> (batch,)."""
    difference = torch.linalg.vector_norm(found - target, dim=1)
    return difference / torch.linalg.vector_norm(target, dim=1)


def _descend(
    read: Callable[[Tensor], Tensor],
    images: Tensor,
    start: Tensor,
    layer: str,
    steps: int,
    step_size: float,
    advance: Callable[[int], None] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch: the inversions (batch, c, h, w), distance at the start and at the end (batch,)."""
    exact = torch.autocast(images.device.type, enabled=False)
    with torch.no_grad(), exact:
        target = read(images)
        _check_target(target, layer)
        first = relative_distance(read(start), target)
    x, best = start, start.clone()
    best_distance = torch.full_like(first, torch.inf)
    velocity = torch.zeros_like(start)
    for k in range(steps):
        x.requires_grad_(True)
        distance = relative_distance(read(x), target)
        (gradient,) = torch.autograd.grad(distance.sum(), x)
        x, distance = x.detach(), distance.detach()
        best, best_distance = _nearer(best, best_distance, x, distance)
        velocity.mul_(MOMENTUM).add_(steepest(gradient, "l2", x), alpha=1 - MOMENTUM)
        x = (x - step_size * (1 - k / steps) * velocity).clamp_(0, 1)
        if advance is not None:
            advance(1)
    with torch.no_grad():
        best, best_distance = _nearer(best, best_distance, x, relative_distance(read(x), target))
        with exact:
            last = relative_distance(read(best), target)
    if not bool(torch.isfinite(x).all() and torch.isfinite(last).all()):
        raise UserError(
            "an inversion expects a finite representation and gradient; the model gave NaN or inf; "
            "look for sqrt, log or a division at 0 in the model"
        )
    return best, first, last


def _nearer(
    best: Tensor, best_distance: Tensor, x: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each image the iterate with the smaller distance."""
    better = distance < best_distance
    return (
        torch.where(per_image(better, x), x, best),
        torch.where(better, distance, best_distance),
    )


def _check_target(target: Tensor, layer: str) -> None:
    size = torch.linalg.vector_norm(target, dim=1)
    if not bool(torch.isfinite(size).all()):
        raise UserError(f"layer {layer} expects a finite representation; the model gave NaN or inf")
    if empty := int((size == 0).sum()):
        raise UserError(
            f"layer {layer} expects a representation other than 0, or no distance is relative to "
            f"it; {empty} of {len(size)} images have 0; choose another layer, or logits"
        )
