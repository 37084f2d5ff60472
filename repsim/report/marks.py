"""An interval as a small drawing inside a table's cell: inline SVG, crisp on screen and paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from repsim.findings import Number

WIDTH, HEIGHT, EDGE = 150, 18, 5


def domain(numbers: Sequence[Number], margin: float | None) -> tuple[float, float]:
    """One scale for numbers that stand below one another: all they have and 0; 0 to 1 if it fits.

    Args:
        numbers: at least one.
        margin: of differences; None for numbers that are none.
    """
    ends = [0.0]
    for one in numbers:
        ends += [
            end
            for end in (one.value, one.lower, one.upper, one.paper)
            if end is not None and math.isfinite(end)
        ]
    low, high = min(ends), max(ends)
    if margin is not None:
        return min(low, -2 * margin), max(high, 2 * margin)
    if low >= -0.02 and high <= 1.02:
        return min(low, 0.0), max(high, 1.0)
    return low, high if high > low else low + 1


def mark(one: Number, scale: tuple[float, float], margin: float | None) -> Markup:
    """A point with its interval; the paper's value as a diamond; the margin as a grey band.

    Hidden from screen readers: the numbers stand beside it.
    """
    low, high = scale

    def x(value: float) -> float:
        part = (min(max(value, low), high) - low) / (high - low)
        return round(EDGE + part * (WIDTH - 2 * EDGE), 1)

    middle = HEIGHT / 2
    parts = []
    if margin is not None:
        left, right = x(-margin), x(margin)
        parts.append(
            f'<rect class="band" x="{left}" y="0" width="{right - left:.1f}" height="{HEIGHT}"/>'
        )
    if low <= 0 <= high:
        parts.append(f'<path class="zero" d="M{x(0)} 0V{HEIGHT}"/>')
    if not math.isfinite(one.value):
        parts.append(f'<text x="{WIDTH / 2}" y="{middle + 4}">not defined</text>')
    else:
        if one.lower is not None and one.upper is not None:
            parts.append(f'<path class="line" d="M{x(one.lower)} {middle}H{x(one.upper)}"/>')
        if one.paper is not None:
            at = x(one.paper)
            parts.append(f'<path class="paper" d="M{at} {middle - 5}l4 5l-4 5l-4 -5z"/>')
        parts.append(f'<circle cx="{x(one.value)}" cy="{middle}" r="3.4"/>')
    return Markup(
        f'<svg class="mark" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )
