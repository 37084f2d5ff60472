"""The nearest point of a hyperplane inside the pixel box, in linf, l2 and l1.

Croce and Hein 2020 (arXiv 1907.02044), section 3.1: the projection of the FAB attack,

    min_d ‖d‖  subject to  ⟨w, x + d⟩ = b  and  x + d ∈ [0, 1].

Every coordinate moves towards the hyperplane or not at all, by m_i ≤ u_i, u_i the room that the
box leaves in that direction; so with a_i = |w_i| and r = |b - ⟨w, x⟩| it remains to solve
Σ a_i m_i = r, m as small as possible. Optimality gives

    linf: m_i = min(μ, u_i);   l2: m_i = min(μ·a_i, u_i);   l1: m_i = u_i, largest a_i first.

The paper sorts the breakpoints. Here linf and l2 find the one number μ by Newton's iteration, a
few passes over the data, and l1 looks at the largest a_i only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repsim.attacks.ball import NORMS
from repsim.errors import UserError

# Each pass shrinks residual · slope at least fourfold, so that this many exhaust float32's range.
_PASSES = 64
_FIRST_LOOK = 64  # l1: coordinates that nearly always suffice


def project_onto_hyperplane(points: Tensor, normal: Tensor, offset: Tensor, norm: str) -> Tensor:
    """The smallest d with ⟨normal, points + d⟩ = offset and points + d in [0, 1], row by row.

    Where the box does not reach the hyperplane, the d that comes nearest to it: every
    coordinate of use at its bound. Coordinates whose normal is 0 never move. In l1 the solution
    is not unique where entries of the normal are equal in size; any one is given.

    Args:
        points: (rows, n) in [0, 1], float32 or float64.
        normal: (rows, n).
        offset: (rows,).
        norm: "linf", "l2" or "l1".

    Returns:
        d, (rows, n); NaN in a row whose normal or offset is not finite.
    """
    return shift_onto_hyperplane(points, normal, offset - (normal * points).sum(1), norm)


def shift_onto_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The same from gap = offset - ⟨normal, points⟩, which the caller may know without rounding."""
    if norm not in NORMS:
        raise UserError(f"norm expects one of {', '.join(NORMS)}; got {norm!r}")
    if points.numel() == 0:
        return torch.zeros_like(points)
    # Scaled to a largest entry of 1: the square of a gradient of 1e-30 underflows to 0.
    largest = normal.abs().amax(1, keepdim=True)
    direction = normal * torch.where(gap < 0, -1.0, 1.0).to(gap.dtype)[:, None]
    direction /= largest.clamp_min(torch.finfo(normal.dtype).tiny)
    need = gap.abs()[:, None] / largest.clamp_min(torch.finfo(normal.dtype).tiny)
    weight = direction.abs()
    room = torch.gt(direction, 0, out=torch.empty_like(direction)).sub_(points).abs_()
    move = _fill(weight, room, need) if norm == "l1" else _newton(weight, room, need, norm)
    return move.mul_(direction.sign_())


def _newton(weight: Tensor, room: Tensor, need: Tensor, norm: str) -> Tensor:
    """m = min(μ·speed, room) with Σ weight · m = need, speed 1 (linf) or the weight (l2).

    The sum is concave, piecewise linear and increasing in μ. A Newton step from the left lands
    left of the root, or on it once no breakpoint lies between. Of residual and slope each pass
    leaves shares p and q with p + q ≤ 1, hence p·q ≤ 1/4.
    """
    speed = torch.ones_like(weight) if norm == "linf" else weight
    gain = weight if norm == "linf" else weight.square()
    tolerance = need * (8 * torch.finfo(need.dtype).eps)
    scale = torch.zeros_like(need)
    ahead, free = torch.empty_like(weight), torch.empty_like(weight)
    for _ in range(_PASSES):
        torch.mul(speed, scale, out=ahead)
        torch.gt(room, ahead, out=free)
        slope = torch.linalg.vecdot(gain, free)[:, None]
        residual = (
            need - torch.linalg.vecdot(weight, torch.minimum(ahead, room, out=ahead))[:, None]
        )
        # All at their bounds: out of reach. (A NaN slope is not 0 and stays NaN.)
        step = torch.where(slope == 0, 0.0, residual / slope)
        scale = (scale + step).clamp_max_(1e30)
        # Below the tolerance one step is exact to rounding, and it has been made.
        if not bool(((residual > tolerance) & (step > 0)).any()):
            break
    return torch.minimum(torch.mul(speed, scale, out=ahead), room, out=ahead)


def _fill(weight: Tensor, room: Tensor, need: Tensor, look: int = _FIRST_LOOK) -> Tensor:
    """Each coordinate to its bound, the largest weights first, until Σ weight · m = need.

    Looks at the `look` largest; the rows for which they do not suffice go on to eight times as
    many.
    """
    width = weight.shape[1]
    look = min(look, width)
    # Without room there is nothing to gain: such coordinates would fill the look for nothing.
    value, index = (weight * (room > 0)).topk(look, dim=1)
    bound = room.gather(1, index)
    gain = value * bound
    total = gain.cumsum(1)
    tiny = torch.finfo(weight.dtype).tiny
    part = ((need - (total - gain)) / value.clamp_min(tiny)).clamp_min_(0).minimum(bound)
    move = torch.zeros_like(weight).scatter_(1, index, part)
    if look < width:
        short = (total[:, -1:] < need)[:, 0].nonzero()[:, 0]
        if len(short):
            move[short] = _fill(weight[short], room[short], need[short], 8 * look)
    return move
