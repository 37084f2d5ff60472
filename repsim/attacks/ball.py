"""The geometry of an attack: norm balls around an image, cut with the pixel box [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repsim.attacks.l1 import largest_signs, project_l1
from repsim.errors import UserError
from repsim.keyed import keyed_normal, keyed_sign, keyed_uniform

NORMS = ("linf", "l2", "l1")


def check_ball(eps: float, norm: str) -> None:
    """Refuse sizes that cannot be meant.

    Raises:
        UserError: unknown norm, eps negative or not finite, or a linf eps in 0-255 units.
    """
    if norm not in NORMS:
        raise UserError(f"norm expects one of {', '.join(NORMS)}; got {norm!r}")
    if not 0 <= eps < float("inf"):
        raise UserError(f"eps expects a number of at least 0 in pixel units; got {eps!r}")
    if norm == "linf" and eps > 1:
        raise UserError(
            f"eps expects pixel units in [0, 1] for linf; got {eps:g}, which looks like 0-255 "
            f"units; try {eps:g}/255"
        )


def perturbation_norm(delta: Tensor, norm: str) -> Tensor:
    """Norm of each image's perturbation: (batch, ...) -> (batch,) float32."""
    flat = delta.flatten(1).float()
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().sum(1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, 1, ...), to be broadcast over `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def project(inputs: Tensor, clean: Tensor, eps: float, norm: str) -> Tensor:
    """An image of the ball around `clean` and of [0, 1] near `inputs`; (batch, ...).

    linf and l1: the nearest one. l2: the nearest one of the ball, then clipped; clipping moves
    every pixel towards the clean image, which lies in the box, so it does not leave the ball.
    """
    if norm == "l1":
        return project_l1(inputs, clean, eps)
    half = clean.element_size() < 4
    if norm == "linf":
        wide = clean.float() if half else clean  # in 16 bits eps itself would be rounded
        low, high = (wide - eps).clamp_(min=0), (wide + eps).clamp_(max=1)
        if half:
            low, high = (_not_beyond(b.to(clean.dtype), clean, eps) for b in (low, high))
        return torch.maximum(torch.minimum(inputs, high), low)
    delta = inputs - clean
    size = per_image(perturbation_norm(delta, norm), delta)
    delta = (delta * (eps / size.clamp_min(1e-12)).clamp_max(1)).to(inputs.dtype)
    projected = (clean + delta).clamp_(0, 1)
    return _shrunk(projected, clean, eps) if half else projected


def _not_beyond(bound: Tensor, clean: Tensor, eps: float) -> Tensor:
    """A bound of the cube in 16 bits, rounded towards the image where it was rounded away."""
    gap = bound.float() - clean.float()
    # Numbers from 0 up are in the order of their bits.
    back = torch.where(gap > 0, -1, 1).masked_fill_(gap.abs() <= eps, 0).to(torch.int16)
    return (bound.view(torch.int16) + back).view(bound.dtype)


def _shrunk(inputs: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Perturbations in 16 bits that rounding has taken out of the l2 ball, drawn back in."""
    for _ in range(8):
        delta = inputs.float() - clean.float()
        size = per_image(perturbation_norm(delta, "l2"), delta)
        if not bool((size > eps).any()):
            break
        scale = torch.where(size > eps, eps / size.clamp_min(1e-12) * (1 - 2**-7), 1.0)
        inputs = (clean.float() + scale * delta).clamp_(0, 1).to(inputs.dtype)
    return torch.where(size <= eps, inputs, clean)


def steepest(gradient: Tensor, norm: str, at: Tensor) -> Tensor:
    """The direction of norm 1 along which the loss grows fastest; (batch, ...).

    linf: the sign. l2: the gradient over its own norm. l1: the signs of the largest 1% of
    |gradient| over their number, among the pixels of the iterate `at`, which no other norm looks
    at, that can still move that way within [0, 1]; the one largest would be steepest, but moves
    nothing else (SLIDE, Tramèr and Boneh 2019, arXiv 1904.13000, section 4, quantile 0.99).

    An image whose gradient is 0 stays. NaN stays NaN, so that an attack notices a broken gradient
    at its end.
    """
    if norm == "linf":
        # torch's sign of NaN is 0: the image would stay, and count as robust.
        return torch.where(gradient.isnan(), gradient, gradient.sign())
    if norm == "l1":
        stuck = ((at <= 0) & (gradient < 0)) | ((at >= 1) & (gradient > 0))
        count = -(-math.prod(gradient.shape[1:]) // 100)
        counts = torch.full((len(gradient),), count, device=gradient.device)
        return largest_signs(gradient.masked_fill(stuck, 0), counts, count)
    # Scaled by the largest entry first: the square of a gradient of 1e-30 underflows to 0.
    tiny = torch.finfo(gradient.dtype).tiny
    largest = per_image(gradient.flatten(1).abs().amax(1), gradient)
    scaled = gradient / largest.clamp_min(tiny)
    size = per_image(scaled.flatten(1).norm(dim=1), gradient)
    return scaled / size.clamp_min(tiny)


def random_start(
    clean: Tensor, eps: float, norm: str, *, ids: Tensor, seed: int, restart: int = 0
) -> Tensor:
    """A point drawn uniformly from the ball around each image, then clipped to [0, 1].

    linf: uniform in the cube. l2: a normal direction at radius eps · u^(1/d), d the number of
    pixel values. l1: ±eps · e_i / Σ e, of d + 1 exponential draws e the first d, with random
    signs. The draws are keyed by (seed, id, restart); see `repsim.keyed`.
    """
    shape = tuple(clean.shape[1:])
    if norm == "l1":
        size = math.prod(shape)
        spacing = keyed_uniform(ids, (size + 1,), seed=seed, stream=2 * restart).neg_().log1p_()
        share = (spacing[:, :size] / spacing.sum(1, keepdim=True)).view(-1, *shape)
        sign = keyed_sign(ids, shape, seed=seed, stream=2 * restart + 1)
        point = clean + (eps * sign * share).to(clean.dtype)
        return project(point, clean, eps, norm)  # in the ball: clipped, and what rounding added
    if norm == "linf":
        delta = keyed_uniform(ids, shape, seed=seed, stream=2 * restart) * 2 - 1
        return project(clean + eps * delta.to(clean.dtype), clean, eps, norm)
    direction = keyed_normal(ids, shape, seed=seed, stream=2 * restart)
    direction = direction / per_image(direction.flatten(1).norm(dim=1), direction)
    radius = keyed_uniform(ids, (1,), seed=seed, stream=2 * restart + 1)[:, 0]
    radius = radius ** (1.0 / math.prod(shape))
    delta = eps * per_image(radius, direction) * direction
    return project(clean + delta.to(clean.dtype), clean, eps, norm)
