"""The Square attack: random search without gradients (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.attacks.ascend import MODES
from repsim.attacks.ball import check_ball, per_image, project
from repsim.attacks.gradient import check_finite, check_inputs, default_ids, frozen
from repsim.attacks.objective import Classify, confirmed, value
from repsim.errors import UserError
from repsim.keyed import keyed_uniform
from repsim.losses import margin

# After this many squares of 10,000 the fraction of the image they cover is halved (section 5).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Keeps these draws apart from other attacks'; a restart has its own range of streams.
_STREAM, _RESTART = 5 << 40, 1 << 24
# Draws are made for this many queries at once, and forgotten.
_BLOCK = 64


def square(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    queries: int = 5000,
    restarts: int = 1,
    p_init: float = 0.8,
    rescale: bool = False,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """x ← x + δ where this raises max_{i≠y} z_i(x) - z_y(x), δ a square at a random place.

    linf: starts from vertical stripes of ±eps; δ is 2 eps times a sign a channel, so that the
    square's pixels go to one end of their range (algorithm 2). l2: starts from a grid of tiles;
    δ moves the mass of a second window into the first one, shaped as two pyramids of opposite
    sign (algorithm 3). l1: the same with flatter, sharper pyramids and the projection onto ball
    and box, as in AutoAttack. The square covers a fraction p of the image, p_init at first and
    halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 squares.

    Every image has its own squares. Cost: `queries` + 1 forwards for an image that is never fooled.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units.
        norm: "linf", "l2" or "l1".
        queries: squares tried in each restart.
        restarts: independent runs.
        p_init: fraction of the image that the first squares cover, in (0, 1].
        rescale: halve p at the same fractions of `queries` as published for 10,000.
        mode: "represent": all squares, accepted whenever the margin grows; the image with the
            highest margin. "evaluate" and "last": an image leaves the batch as soon as it is
            misclassified, and that is its result; one never fooled ends at its highest margin.
        seed: seed of the draws, which are keyed by (seed, id, restart, query).
        ids: int64 (batch,) keys; the position in the batch by default.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), the margin max_{i≠y} z_i - z_y at the result, and
            `first_success` (batch,), the number of queries after which an image was first
            misclassified (1: the start, as the paper counts; k + 1: the k-th square; the fewest
            of the restarts that were run), -1 where it never was.

    Returns:
        The attacked images, like inputs; the inputs themselves for eps 0.

    Raises:
        UserError: images outside [0, 1]; labels that are none of the classes; outputs that are
            not (batch, classes) or not finite; a setting that cannot be meant.

    Source: Andriushchenko et al. 2020, arXiv 1912.00049; l1: Croce and Hein 2021, arXiv 2103.01208.
    """
    check_ball(eps, norm)
    if queries < 1 or restarts < 1:
        raise UserError(f"queries and restarts expect at least 1; got {queries} and {restarts}")
    if not 0 < p_init <= 1:
        raise UserError(f"p_init expects a fraction above 0 and up to 1; got {p_init!r}")
    if mode not in MODES:
        raise UserError(f"mode expects one of {', '.join(MODES)}; got {mode!r}")
    check_inputs(inputs, labels)
    inputs, ids = inputs.detach(), default_ids(inputs, ids)
    result = inputs.clone()
    loss = torch.full((len(inputs),), -torch.inf, dtype=torch.float32, device=inputs.device)
    first = torch.full((len(inputs),), -1, dtype=torch.int64, device=inputs.device)
    active = torch.arange(len(inputs), device=inputs.device)
    sides = [
        side_length(fraction(k, p_init, queries if rescale else None), inputs.shape, norm)
        for k in range(queries if eps > 0 else 0)
    ]
    with frozen(model, train_mode=train_mode, like=inputs) as net, torch.no_grad():
        objective = Classify(net, labels, margin)
        for restart in range(restarts):
            if len(active) == 0:
                break
            clean = inputs[active]
            draws = _Draws(ids[active], seed, restart)
            search: _Search = (
                _Squares(clean, eps, draws)
                if norm == "linf"
                else _Pyramids(clean, eps, draws, norm)
            )
            x, x_loss, x_first = _run(objective, search, sides, active, leave=mode != "represent")
            better = x_loss >= loss[active]
            chosen = active[better]
            result[chosen], loss[chosen] = x[better], x_loss[better]
            earlier = (x_first >= 0) & ((first[active] < 0) | (x_first < first[active]))
            first[active] = torch.where(earlier, x_first, first[active])
            if mode != "represent":
                active = active[x_first < 0]
    if record is not None:
        record.update(loss=loss, first_success=first)
    return result


def fraction(k: int, p_init: float, queries: int | None) -> float:
    """The part of the image that square k (from 0) covers; `queries` rescales the schedule."""
    if queries is not None:
        k = int(k / queries * 10000)
    return p_init / 2.0 ** bisect_left(HALVINGS, k)


def side_length(p: float, shape: tuple[int, ...], norm: str) -> int:
    """The square's side: √(p·h·w) rounded, at most the image's; of a pyramid odd, at least 3."""
    height, width = shape[-2:]
    side = max(round(math.sqrt(p * height * width)), 1 if norm == "linf" else 3)
    if norm != "linf" and side % 2 == 0:
        side += 1
    return min(side, height, width)


class _Draws:
    """Uniform numbers in [0, 1) for each image: for the start, and for each query."""

    def __init__(self, ids: Tensor, seed: int, restart: int) -> None:
        self.ids, self.seed = ids, seed
        self.stream = _STREAM + restart * _RESTART
        self._block = torch.empty(len(ids), 0, 0)

    def start(self, count: int) -> Tensor:
        """(batch, count)."""
        return keyed_uniform(self.ids, (count,), seed=self.seed, stream=self.stream)

    def query(self, k: int, count: int) -> Tensor:
        """(batch, count) for query k; asked for one after the other from 0."""
        block, place = divmod(k, _BLOCK)
        if place == 0:
            self._block = keyed_uniform(
                self.ids, (_BLOCK, count), seed=self.seed, stream=self.stream + 1 + block
            )
        return self._block[:, place]

    def keep(self, rows: Tensor) -> None:
        """Only these images go on."""
        self.ids, self._block = self.ids[rows], self._block[rows]


class _Search(Protocol):
    """What to try next, from what was kept.

    Attributes:
        x: the images that were kept (batch, c, h, w).
    """

    x: Tensor

    def start(self) -> Tensor:
        """The first images to try."""

    def propose(self, k: int, side: int) -> Tensor:
        """The images to try in query k."""

    def settle(self, accepted: Tensor) -> None:
        """Keep what was proposed last for these images (batch,) bool."""

    def keep(self, rows: Tensor) -> None:
        """Only these images go on."""


def _run(
    objective: Classify, search: _Search, sides: list[int], rows: Tensor, *, leave: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One restart: of each image the best, its margin, and the queries to the first success."""
    x = search.start()
    loss, fooled = value(objective, x, rows)
    if leave:
        loss, fooled = confirmed(objective, x, rows, loss, fooled)
    result, final_loss, first = x.clone(), loss.clone(), torch.where(fooled, 1, -1)
    best, sound = loss, loss.isfinite()
    active = torch.arange(len(x), device=x.device)
    for k, side in enumerate(sides):
        if leave:
            leaving = torch.nonzero(fooled)[:, 0]
            if len(leaving):
                gone, staying = active[leaving], torch.nonzero(~fooled)[:, 0]
                result[gone], final_loss[gone] = search.x[leaving], best[leaving]
                search.keep(staying)
                active, best = active[staying], best[staying]
            if len(active) == 0:
                break
        x = search.propose(k, side)
        loss, fooled = value(objective, x, rows[active])
        if leave:
            loss, fooled = confirmed(objective, x, rows[active], loss, fooled)
        sound[active] &= loss.isfinite()
        newly = fooled & (first[active] < 0)
        first[active] = torch.where(newly, k + 2, first[active])
        # Where the two highest logits are equal, fooled may come without a higher margin.
        accepted = (loss > best) | newly
        search.settle(accepted)
        best = torch.where(accepted, loss, best)
    result[active], final_loss[active] = search.x, best
    check_finite(torch.where(sound, final_loss, torch.nan))
    return result, final_loss, first


def _places(uniform: Tensor, span: int) -> Tensor:
    """Whole numbers 0 to span - 1 (0 for a span of 0), int64.

    A window of side s has span h - s, so it never touches the last row: so in the published code.
    """
    return (uniform * span).long()


def _flat(x: Tensor) -> Tensor:
    """A dense tensor's values in the order of its memory, whatever its layout; not a copy."""
    return x.as_strided((x.numel(),), (1,))


def _windows(like: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Where each image's square is in `_flat(like)`: int64 (batch, c, side, side).

    The work then grows with the square, which soon is small, and not with the image.
    """
    batch, channels = like.shape[:2]
    image, channel, row, column = like.stride()
    span = torch.arange(side, device=like.device)
    corner = torch.arange(batch, device=like.device) * image + top * row + left * column
    inside = torch.arange(channels, device=like.device)[:, None, None] * channel
    inside = inside + span[:, None] * row + span * column  # (c, side, side)
    return corner[:, None, None, None] + inside


class _Squares:
    """linf: each pixel of a square goes to the one or the other end of its range."""

    def __init__(self, clean: Tensor, eps: float, draws: _Draws) -> None:
        self.clean, self.eps, self.draws = clean, eps, draws
        self.ends = self._ends()

    def _ends(self) -> Tensor:
        """Both ends of every pixel's range, one after the other, so that an offset chooses."""
        bounds = torch.zeros_like(self.clean), torch.ones_like(self.clean)
        return torch.cat([_flat(project(b, self.clean, self.eps, "linf")) for b in bounds])

    def start(self) -> Tensor:
        """Stripes: one sign for each column of each channel."""
        batch, channels, _, width = self.clean.shape
        up = self.draws.start(channels * width).view(batch, channels, 1, width) > 0.5
        place = torch.empty_like(self.clean, dtype=torch.int64).copy_(up * self.clean.numel())
        self.x = torch.empty_like(self.clean)
        inside = torch.arange(self.clean.numel(), device=self.clean.device)
        _flat(self.x).copy_(self.ends.take(_flat(place) + inside))
        return self.x

    def propose(self, k: int, side: int) -> Tensor:
        """In place: the old values of the squares are remembered."""
        channels, height, width = self.x.shape[1:]
        draw = self.draws.query(k, 2 + channels)
        top, left = _places(draw[:, 0], height - side), _places(draw[:, 1], width - side)
        self._where = _windows(self.x, top, left, side)
        # From anywhere in the ball a step of 2 eps reaches its end.
        high = (draw[:, 2:] > 0.5).long() * self.x.numel()
        self._old = _flat(self.x).take(self._where)
        self._new = self.ends.take(self._where + high[:, :, None, None])
        _flat(self.x).put_(self._where, self._new)
        return self.x

    def settle(self, accepted: Tensor) -> None:
        """The others get their squares back."""
        values = torch.where(per_image(accepted, self._new), self._new, self._old)
        _flat(self.x).put_(self._where, values)

    def keep(self, rows: Tensor) -> None:
        """Only these images go on."""
        self.clean, self.x = self.clean[rows], self.x[rows]
        self.ends = self._ends()
        self.draws.keep(rows)


class _Pyramids:
    """l2 and l1: the mass of two windows goes into one of them, shaped as two pyramids."""

    def __init__(self, clean: Tensor, eps: float, draws: _Draws, norm: str) -> None:
        self.clean, self.eps, self.draws, self.norm = clean, eps, draws, norm
        self.order = 2 if norm == "l2" else 1
        self.dtype = torch.promote_types(clean.dtype, torch.float32)

    def _size(self, values: Tensor, dims: tuple[int, ...]) -> Tensor:
        return torch.linalg.vector_norm(values, self.order, dim=dims, keepdim=True)

    def _shapes(self, side: int, turned: Tensor) -> Tensor:
        """(batch, 1, side, side)."""
        pair = pyramids(side, self.norm).to(self.clean.device, self.dtype)
        return pair[turned.long()][:, None]

    def _cut(self, delta: Tensor) -> Tensor:
        """l2: the images at full distance in this direction, clipped to [0, 1]. l1: projected."""
        clean = self.clean.to(self.dtype)
        if self.norm == "l1":
            cut = project(clean + delta, clean, self.eps, "l1").to(self.clean.dtype)
        else:
            scale = self.eps / (self._size(delta, (1, 2, 3)) + 1e-12)
            cut = torch.addcmul(clean, delta, scale).clamp_(0, 1).to(self.clean.dtype)
        if cut.element_size() < 4:  # rounding to 16 bits may have taken it out of the ball
            cut = project(cut, self.clean, self.eps, self.norm)
        return cut

    def start(self) -> Tensor:
        """A grid of five tiles or more, each with a sign for each channel."""
        batch, channels, height, width = self.clean.shape
        # Of the published code: the margin is that of five tiles, also where more fit in.
        side = max(height // 5, 1)
        begin = max(height - side * 5, 0) // 2
        tiles = [
            (begin + i * side, begin + j * side)
            for i in range(height // side)
            for j in range(width // side)
        ]
        draw = self.draws.start(len(tiles) * (1 + channels)).view(batch, len(tiles), -1)
        sign = torch.where(draw > 0.5, 1.0, -1.0)
        delta = torch.zeros_like(self.clean, dtype=self.dtype)
        for (top, left), u, s in zip(tiles, draw.unbind(1), sign.unbind(1), strict=True):
            window = delta[:, :, top : top + side, left : left + side]
            shape = self._shapes(side, u[:, 0] > 0.5) * s[:, 1:, None, None]
            window.copy_(shape[:, :, : window.shape[2], : window.shape[3]])
        self.x = self._new = self._cut(delta)
        return self.x

    def propose(self, k: int, side: int) -> Tensor:
        """The budget of both windows, and what clipping left unused, goes into the first."""
        channels, height, width = self.x.shape[1:]
        draw = self.draws.query(k, 5 + channels)
        down, across = _places(draw[:, :4:2], height - side), _places(draw[:, 1:4:2], width - side)
        delta = self.x.to(self.dtype) - self.clean
        total = self.eps**self.order
        unused = total - self._size(delta, (1, 2, 3)) ** self.order
        # A rest that is rounding only would make a window of noise, whose shape is then kept.
        unused = F.threshold(unused, 8 * torch.finfo(self.dtype).eps * total, 0.0)
        flat = _flat(delta)
        here = _windows(delta, down[:, 0], across[:, 0], side)
        there = _windows(delta, down[:, 1], across[:, 1], side)
        window = flat.take(here)
        flat.put_(here, torch.zeros_like(window))  # so that the overlap counts once
        other = flat.take(there)
        flat.put_(there, torch.zeros_like(other))
        size = self._size(window, (2, 3))
        mass = size**self.order + self._size(other, (2, 3)) ** self.order
        sign = torch.where(draw[:, 5:] > 0.5, 1.0, -1.0)[:, :, None, None]
        shape = self._shapes(side, draw[:, 4] > 0.5) * sign + window / (size + 1e-12)
        shape = shape / (self._size(shape, (2, 3)) + 1e-12)
        budget = (unused / channels + mass) ** (1 / self.order)
        if self.norm == "l1":  # AutoAttack's l1 gives each channel as much as all of them have
            budget = budget * channels
        flat.put_(here, (shape * budget).to(delta.dtype))
        self._new = self._cut(delta)
        return self._new

    def settle(self, accepted: Tensor) -> None:
        """See `_Search`."""
        self.x = torch.where(per_image(accepted, self.x), self._new, self.x)

    def keep(self, rows: Tensor) -> None:
        """Only these images go on."""
        self.clean, self.x = self.clean[rows], self.x[rows]
        self.draws.keep(rows)


@lru_cache(maxsize=64)
def pyramids(side: int, norm: str) -> Tensor:
    """Two pyramids of opposite sign, of norm 1 together: (2, side, side) float64.

    The first entry has them above one another, the second side by side.

    Algorithm 3's η: the cell at the distance d (the larger of those along the two axes) from the
    centre of its half of rows has height Σ_{k≥d} (k + 1)^-2; -4 for l1.
    """
    halves = [side // 2, side - side // 2]
    columns = (torch.arange(side) - side // 2).abs()
    order = 2 if norm == "l2" else 1
    parts = []
    for rows, sign in zip(halves, (1.0, -1.0), strict=True):
        distance = torch.maximum((torch.arange(rows) - rows // 2).abs()[:, None], columns)
        terms = torch.arange(1, max(rows // 2, side // 2) + 2).double() ** (-4.0 / order)
        half = terms.flip(0).cumsum(0).flip(0)[distance]
        parts.append(sign * half / torch.linalg.vector_norm(half, order).clamp_min(1e-12))
    both = torch.cat(parts)
    both = both / torch.linalg.vector_norm(both, order)
    return torch.stack([both, both.T])
