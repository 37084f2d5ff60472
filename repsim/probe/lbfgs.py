"""L-BFGS for smooth convex functions in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 200
_MEMORY = 10  # pairs of steps and changes of the gradient
_FLAT = 1e-5  # largest entry of the gradient at which it ends
_STILL = 3e-7  # decrease beside the value below which float32 sees no more
_HALVINGS = 12


@torch.no_grad()
def lbfgs(function: Callable[[Tensor], tuple[float, Tensor]], start: Tensor) -> Tensor:
    """The minimum of a convex function (Nocedal and Wright 2006, algorithms 7.4 and 7.5).

    Steps are halved until the value falls enough (Armijo); it ends where the gradient is flat or
    the value stands still, which torch's own, with its Wolfe conditions, looks past for hundreds
    of evaluations in float32.

    Args:
        function: (k,) -> value and gradient (k,).
        start: (k,).
    """
    x = start.clone()
    value, gradient = function(x)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    still = 0
    for _ in range(_STEPS):
        if float(gradient.abs().max()) <= _FLAT:
            break
        direction = _direction(gradient, steps, changes)
        slope = float(direction @ gradient)
        length = 1.0 if steps else min(1.0, 1 / float(gradient.abs().sum()))
        for _ in range(_HALVINGS):
            ahead = x + length * direction
            new_value, new_gradient = function(ahead)
            if new_value <= value + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break
        step, change = ahead - x, new_gradient - gradient
        if float(step @ change) > 0:
            steps.append(step)
            changes.append(change)
            del steps[:-_MEMORY], changes[:-_MEMORY]
        still = still + 1 if value - new_value <= _STILL * abs(value) else 0
        x, value, gradient = ahead, new_value, new_gradient
        if still == 3:
            break
    return x


def _direction(gradient: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient, by the two-loop recursion."""
    q = gradient.clone()
    weights = []
    for step, change in zip(reversed(steps), reversed(changes), strict=True):
        weight = (step @ q) / (step @ change)
        q -= weight * change
        weights.append(weight)
    if steps:
        q *= (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for step, change, weight in zip(steps, changes, reversed(weights), strict=True):
        q += (weight - (change @ q) / (step @ change)) * step
    return -q
