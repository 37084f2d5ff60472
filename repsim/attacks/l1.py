"""The l1 ball cut with the pixel box: its projection and its sparse steps."""

from __future__ import annotations

import torch
from torch import Tensor

# A sum of pixels may come out this much above eps by rounding alone; such a point is inside.
_SLACK = 1 + 2.0**-23
_CACHED = 2**18  # pixel values
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def project_l1(inputs: Tensor, clean: Tensor, eps: float) -> Tensor:
    """The nearest point of {z : ‖z - clean‖₁ <= eps} ∩ [0, 1]^d; (batch, ...), like inputs.

    Both at once: the nearest point of the ball, clipped to the box, is another one, further away
    and with less than eps left (Croce and Hein 2021, arXiv 2103.01208, section 2). With
    δ = inputs - clean and u what is left of the box in the direction of δ, it is

        clean + sign(δ) · clip(|δ| - λ, 0, u),  λ >= 0 such that Σ clip(|δ| - λ, 0, u) = eps,

    and λ = 0 for a point inside. Solved in float64 and rounded towards the clean image, so that
    the result's norm is never above eps by more than the last bit. A point inside is returned
    as it is. NaN stays NaN.
    """
    result = inputs.clamp(0, 1)
    # Some images at a time stay in a CPU's cache, and in memory that is already mapped.
    pieces = result.numel() // _CACHED + 1 if inputs.device.type == "cpu" else 1
    for part, point, center in zip(
        *(t.tensor_split(pieces) for t in (result, inputs, clean)), strict=True
    ):
        _pull_inside(part, point, center, eps)
    return result


def _pull_inside(clipped: Tensor, inputs: Tensor, clean: Tensor, eps: float) -> None:
    """Put the projection in the place of those of `clipped` that are not in the ball."""
    outside = torch.nonzero(_sum((clipped.double() - clean).abs_()).flatten() > eps * _SLACK)[:, 0]
    if len(outside) == 0:
        return
    center = clean[outside].double()
    delta = inputs[outside].double().sub_(center)
    room = torch.where(delta > 0, 1 - center, center)
    length = delta.abs()
    length = torch.minimum(length.sub_(_threshold(length, room, eps)).clamp_(min=0), room)
    nearest = (center + delta.sign_() * length).to(inputs.dtype)
    too_far = (nearest.double() - center).abs_() > length
    # One number further in. Those from 0 up are in the order of their bits.
    back = torch.where(nearest > clean[outside], -1, 1).masked_fill_(~too_far, 0)
    bits = _BITS[nearest.element_size()]
    clipped[outside] = (nearest.view(bits) + back.to(bits)).view(nearest.dtype)


def _threshold(length: Tensor, room: Tensor, eps: float) -> Tensor:
    """λ of each image, (batch, 1, ...) float64: Σ clip(length - λ, 0, room) = eps.

    Found in float32, which is fast, and from there in float64, which takes a step or two.
    """
    near = _solve(length.float(), room.float(), eps, None, tolerance=1e-5, rounds=15)
    return _solve(length, room, eps, near.double(), tolerance=1e-9, rounds=250)


def _solve(
    length: Tensor, room: Tensor, eps: float, guess: Tensor | None, *, tolerance: float, rounds: int
) -> Tensor:
    """The sum falls with λ and is linear between the points length and length - room.

    Newton's steps end exactly once they are within the right piece; where one leaves the bracket,
    or three have not halved it, the middle of the bracket is tried. That ends in 3 · 53 rounds
    and those that bring the bracket to the size of λ. Images that are done leave.
    """
    low = torch.zeros_like(_sum(length))
    high = length.flatten(1).amax(1).view_as(low)
    guess = low if guess is None else guess
    result, width = high.clone(), high
    rows = torch.arange(len(length), device=length.device)
    cut, free = torch.empty_like(length), torch.empty_like(length)
    for k in range(rounds):
        torch.minimum(torch.sub(length, guess, out=cut).clamp_(min=0), room, out=cut)
        excess = _sum(cut) - eps
        moving = _sum(torch.sub(room, cut, out=free).mul_(cut).sign_())  # 0 < cut < room
        low, high = torch.where(excess > 0, guess, low), torch.where(excess > 0, high, guess)
        found = excess.abs() <= tolerance * eps
        newton = guess + excess / moving
        inside = (newton > low) & (newton < high)
        if k % 3 == 2:
            inside &= high - low <= width / 2
            width = high - low
        tried, guess = guess, torch.where(inside, newton, (low + high) / 2)
        done = found | (guess == tried)  # the bracket holds no other number
        guess = torch.where(found, tried, guess)
        result[rows] = torch.where(found, tried, high)
        going = torch.nonzero(~done.flatten())[:, 0]
        if len(going) == 0:
            break
        if len(going) <= 0.75 * len(rows):
            rows, low, high, guess, width = (t[going] for t in (rows, low, high, guess, width))
            length, room = length[going], room[going]
            cut, free = cut[: len(going)], free[: len(going)]
    return result


def _sum(values: Tensor) -> Tensor:
    """Over all but the batch, which stays broadcastable: (batch, ...) -> (batch, 1, ...)."""
    return values.sum(tuple(range(1, values.dim())), keepdim=True)


def largest_signs(gradient: Tensor, counts: Tensor, most: int) -> Tensor:
    """Signs of each image's `counts` largest |entries| over their number, else 0; like gradient.

    Entries as large as the last one chosen are chosen too, entries of 0 never. NaN stays NaN.

    Args:
        gradient: (batch, ...).
        counts: int64 (batch,), each from 1 to `most`.
        most: a bound of the counts that is known on the host, so that a GPU need not be asked.
    """
    size = gradient.abs()
    top = size.flatten(1).topk(most, dim=1).values
    last = top.gather(1, counts[:, None] - 1).view(-1, *[1] * (gradient.dim() - 1))
    signs = torch.where(size >= last, gradient.sign(), 0)
    signs = signs / _sum(signs.abs().float()).clamp_min(1).to(gradient.dtype)
    return torch.where(gradient.isnan(), gradient, signs)
