"""Auto-PGD (Croce and Hein 2020, arXiv 2003.01690; for l1 2021, arXiv 2103.01208)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repsim.attacks.ascend import MODES, check_settings, unmoved
from repsim.attacks.ball import per_image, project, steepest
from repsim.attacks.gradient import check_finite, check_inputs, check_logits, default_ids, frozen
from repsim.attacks.l1 import largest_signs
from repsim.attacks.objective import (
    Classify,
    Objective,
    confirmed,
    exact,
    rounded,
    value,
    value_and_gradient,
)
from repsim.attacks.pgd import objective_of
from repsim.errors import UserError
from repsim.keyed import keyed_normal, keyed_uniform
from repsim.losses import dlr_targeted, margin

# Keeps the draws apart from those of the other attacks (streams 0, 1, 2, ...).
_STREAM = 3 << 32
_MOMENTUM = 0.75  # α of Algorithm 1: the weight of the new step beside the last one


def apgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    targets: int = 9,
    rho: float = 0.75,
    eot: int = 1,
    large_radius: bool = True,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """Projected ascent that chooses its own step size, as in AutoAttack; see `auto_ascend`.

    With loss "dlr-targeted" each restart is one run for each of the `targets` classes most
    likely on the clean image, the label left out (fewer where the network has fewer). Its loss
    is (z_t - z_y) / (z_π1 - (z_π3 + z_π4) / 2); with 3 classes or fewer, which have no z_π4, it is
    z_t - z_y. Losses of different targets cannot be compared: of several runs the one whose
    result has the highest margin max_{i≠y} z_i - z_y is kept, and `record` has that margin.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units.
        norm: "linf", "l2" or "l1".
        steps: gradient steps of each run; a run evaluates 1 + steps iterates.
        restarts: independent runs (with targets: of every target).
        loss: "ce", "dlr", "margin", "kl" (from the clean prediction) or "dlr-targeted".
        targets: classes for "dlr-targeted"; other losses do not look at it.
        rho: the step size is halved where the loss rose in at most this share of the steps since
            the last checkpoint; linf and l2.
        eot: gradients to average over at each step, for networks that draw at random.
        large_radius: for l1, begin with 30% of the steps in a ball of 3·eps and 30% in one of
            2·eps, as AutoAttack does; other norms do not look at it.
        mode: what the result is for.
            "represent": full strength, nothing stops at success; of all iterates in the ball
            (the random start, too) the one with the highest loss.
            "evaluate" and "last": an image leaves at its first success, which is its result, and
            later runs work on the others only; one never fooled ends at its highest loss.
        seed: seed of the random starts, which are keyed by (seed, id, run).
        ids: int64 (batch,) keys; the position in the batch by default.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), the loss at the result, and
            `first_success` (batch,), the steps of a run after which an iterate was first
            misclassified (0: its start; the fewest of all runs made), -1 where none was. Steps
            in larger balls count; iterates there do not.

    Returns:
        The attacked images, like inputs; the inputs themselves for eps 0.

    Raises:
        UserError: images outside [0, 1]; labels that are none of the classes; outputs that are
            not (batch, classes); a setting that cannot be meant; a loss or gradient that is not
            finite.
    """
    check_settings(eps=eps, norm=norm, steps=steps, restarts=restarts, eot=eot)
    _check(mode, rho)
    if targets < 1:
        raise UserError(f"targets expects at least 1 class; got {targets}")
    check_inputs(inputs, labels)
    inputs = inputs.detach()
    with frozen(model, train_mode=train_mode, like=inputs) as net:
        if loss == "dlr-targeted":
            classes = _likeliest_wrong(net, inputs, labels, targets)
            objectives: list[Objective] = [Targeted(net, labels, t) for t in classes.unbind(1)]
            compare: Objective | None = Classify(net, labels, margin)
        else:
            objectives, compare = [objective_of(loss, net, inputs, labels)], None
        return _strongest(
            objectives * restarts, inputs, compare=compare, eps=eps, norm=norm, steps=steps,
            rho=rho, eot=eot, large_radius=large_radius, mode=mode, seed=seed, ids=ids,
            record=record,
        )  # fmt: skip


def auto_ascend(
    objective: Objective,
    inputs: Tensor,
    *,
    eps: float,
    norm: str,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    eot: int = 1,
    large_radius: bool = True,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """Auto-PGD's ascent of any objective, as `repsim.attacks.ascend.ascend` is PGD's.

    linf and l2 (Algorithm 1), α = 0.75, 1 at the first step; Π as `project`:

        z ← Π(x + η · direction(∇ objective)),  x ← Π(x + α·(z - x) + (1 - α)·(x - x_before))

    η begins at 2·eps. At checkpoints, whose distances shrink from 22% of the steps by 3% down to
    6%, it is halved, and the run goes on from its best iterate, where the loss rose in at most
    `rho` of the steps since the last one, or where η was not halved there and the best loss has
    not grown since.

    l1: x ← Π(x + η · the signs of the gradient's k largest entries / k), no momentum. Every 4% of
    the steps k becomes 1/1.5 of the pixels in which the best iterate differs from the clean image.
    Where these have become fewer by over 5%, η is eps again and the run goes on from its best
    iterate; elsewhere η, from eps down to eps/10, is divided by 1.5. With `large_radius` each
    ball begins at the projected best iterate of the larger one.

    Where the paper and the authors' code differ this follows the code (k rounded to whole steps;
    "at most" rho), but for one thing: in the first interval the code compares the loss after the
    first step with 0 instead of with the start's.

    The random start is the published one, at the ball's surface and not uniform in it: linf a
    uniform vector over its largest entry, l2 a normal one over its norm, times eps; l1 a normal
    vector, projected. Other settings are those of `apgd`; the caller has checked the images and
    the settings and frozen the network.

    Args:
        objective: what to maximise; see `repsim.attacks.objective`.
        inputs: clean images (batch, c, h, w) in [0, 1].

    Returns:
        The attacked images, like inputs.
    """
    _check(mode, rho)
    return _strongest(
        [objective] * restarts, inputs.detach(), compare=None, eps=eps, norm=norm, steps=steps,
        rho=rho, eot=eot, large_radius=large_radius, mode=mode, seed=seed, ids=ids, record=record,
    )  # fmt: skip


def _check(mode: str, rho: float) -> None:
    """Refuse what `check_settings` does not look at."""
    if mode not in MODES:
        raise UserError(f"mode expects one of {', '.join(MODES)}; got {mode!r}")
    if not 0 <= rho <= 1:
        raise UserError(f"rho expects a share of the steps in [0, 1]; got {rho!r}")


@dataclass
class Targeted:
    """The targeted DLR loss, or z_t - z_y of 3 classes or fewer; reached as `Classify` is.

    Attributes:
        net: pixel model -> logits.
        labels: int64, of all attacked images.
        targets: int64, the class that each of them is to become.
    """

    net: nn.Module
    labels: Tensor
    targets: Tensor

    def __call__(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        logits, labels, targets = self.net(x).float(), self.labels[rows], self.targets[rows]
        if logits.shape[1] > 3:
            loss = dlr_targeted(logits, labels, targets)
        else:
            both = logits.gather(1, torch.stack([targets, labels], 1))
            loss = both[:, 0] - both[:, 1]
        return loss, logits.detach().argmax(1) != labels


def _likeliest_wrong(net: nn.Module, inputs: Tensor, labels: Tensor, count: int) -> Tensor:
    """The classes of the largest clean logits but the label: int64 (batch, at most count)."""
    with torch.no_grad():
        logits = net(inputs)
    check_logits(logits, labels)
    if logits.shape[1] < 2:
        raise UserError("loss dlr-targeted expects at least 2 classes; got 1; try ce")
    wrong = logits.float().scatter(1, labels[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices


def _strongest(
    objectives: Sequence[Objective],
    inputs: Tensor,
    *,
    compare: Objective | None,
    eps: float,
    norm: str,
    steps: int,
    rho: float,
    eot: int,
    large_radius: bool,
    mode: str,
    seed: int,
    ids: Tensor | None,
    record: dict[str, Tensor] | None,
) -> Tensor:
    """One run for each objective; of their results the one with the highest loss, or `compare`."""
    ids = default_ids(inputs, ids)
    if eps == 0 or len(inputs) == 0:  # nothing to climb: the ball is the image
        return unmoved(compare or objectives[0], inputs, eot, record)
    leave = mode != "represent"
    phases = radii(eps, steps) if norm == "l1" and large_radius else [(eps, steps)]
    result = inputs.clone()
    loss = torch.full((len(inputs),), -torch.inf, device=inputs.device)
    first = torch.full((len(inputs),), -1, dtype=torch.int64, device=inputs.device)
    active = torch.arange(len(inputs), device=inputs.device)
    for number, objective in enumerate(objectives):
        clean = inputs[active]
        x = start_of_run(clean, phases[0][0], norm, ids=ids[active], seed=seed, run=number)
        for radius, length in phases[:-1]:
            climb = Climb(objective, radius, norm, length, rho, eot)
            x, _, _ = climb(project(x, clean, radius, norm), clean, active, leave=False)
        climb = Climb(objective, eps, norm, phases[-1][1], rho, eot)
        x = project(x, clean, eps, norm)
        x, x_loss, x_first = climb(x, clean, active, leave=leave, dense=len(phases) == 1)
        x_first = torch.where(x_first >= 0, x_first + steps - climb.steps, x_first)
        if compare is not None:
            x_loss, _ = value(compare, x, active, eot)
        better = x_loss > loss[active]
        if leave:  # misclassified comes before any loss, or a later run could save an image
            better |= x_first >= 0
        chosen = active[better]
        result[chosen], loss[chosen] = x[better], x_loss[better]
        earlier = (x_first >= 0) & ((first[active] < 0) | (x_first < first[active]))
        first[active] = torch.where(earlier, x_first, first[active])
        if leave:
            active = active[x_first < 0]
            if len(active) == 0:
                break
    if record is not None:
        record.update(loss=loss, first_success=first)
    return result


def radii(eps: float, steps: int) -> list[tuple[float, int]]:
    """The schedule of l1: radius and steps of each ball; only the last one where steps are few."""
    most = math.ceil(0.3 * steps)
    if steps - 2 * most < 1:
        return [(eps, steps)]
    return [(3 * eps, most), (2 * eps, most), (eps, steps - 2 * most)]


def start_of_run(
    clean: Tensor, eps: float, norm: str, *, ids: Tensor, seed: int, run: int
) -> Tensor:
    """The published random start, see `auto_ascend`, keyed by (seed, id, run)."""
    shape = tuple(clean.shape[1:])
    if norm == "linf":
        draw = keyed_uniform(ids, shape, seed=seed, stream=_STREAM + run) * 2 - 1
        size = draw.flatten(1).abs().amax(1)
    else:
        draw = keyed_normal(ids, shape, seed=seed, stream=_STREAM + run)
        size = draw.flatten(1).norm(dim=1)
    if norm != "l1":
        draw = eps * draw / per_image(size.clamp_min(1e-12), draw)
    return project(clean + draw.to(clean.dtype), clean, eps, norm)


def checkpoints(steps: int) -> list[int]:
    """The steps after which linf and l2 look at the step size: p_j · steps in Algorithm 1."""
    length, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = [], length
    while at <= steps:
        found.append(at)
        length = max(length - shrink, least)
        at += length
    return found


class _Rows:
    """Tensors (n, ...) of the n images that are still in a run."""

    def keep(self, rows: Tensor) -> None:
        """Only those images, from now on."""
        for name, held in vars(self).items():
            if isinstance(held, Tensor):
                setattr(self, name, held[rows])


class _Halving(_Rows):
    """The step sizes of linf and l2, halved at checkpoints."""

    def __init__(self, x: Tensor, norm: str, eps: float, steps: int, rho: float) -> None:
        self.norm, self.rho, self.checkpoints, self.since = norm, rho, checkpoints(steps), 0
        self.step = torch.full((len(x),), 2 * eps, device=x.device)
        self.rises = torch.zeros_like(self.step)  # of the loss, since the last checkpoint
        self.halved = torch.ones_like(self.step, dtype=torch.bool)  # at the last checkpoint
        self.best_loss = torch.zeros_like(self.step)  # at the last checkpoint

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        """x + η · direction(gradient)."""
        return x + per_image(self.step, x).to(x.dtype) * steepest(gradient, self.norm, x)

    def saw(self, rose: Tensor) -> None:
        self.rises += rose
        self.since += 1

    def review(self, best: Tensor, best_loss: Tensor, clean: Tensor) -> Tensor:
        """At a checkpoint: which images go on from their best iterate, bool (n,)."""
        stands = ~self.halved & (self.best_loss >= best_loss)
        self.halved = (self.rises <= self.since * self.rho) | stands
        self.step = torch.where(self.halved, self.step / 2, self.step)
        self.best_loss, self.since = best_loss, 0
        self.rises = torch.zeros_like(self.rises)
        return self.halved


class _Sparse(_Rows):
    """The step sizes of l1, and how many pixels a step moves."""

    def __init__(self, x: Tensor, clean: Tensor, eps: float, steps: int, dense: bool) -> None:
        every = max(int(0.04 * steps), 1)
        self.eps, self.size = eps, math.prod(x.shape[1:])
        self.checkpoints = list(range(every, steps + 1, every))
        self.step = torch.full((len(x),), eps, device=x.device)
        if dense:
            self.support = torch.full((len(x),), self.size, device=x.device)
            density = torch.full_like(self.step, 0.2)
        else:
            self.support = (x != clean).flatten(1).sum(1)
            density = self.support / self.size / 1.5
        self.counts, self.most = self.counts_of(density)

    def counts_of(self, density: Tensor) -> tuple[Tensor, int]:
        """Pixels to move, from 1 to all, (n,), and the most of them."""
        # In float32 and downwards, as the authors' code finds its quantile: 1 more or less counts.
        counts = self.size - ((1 - density) * self.size).long().clamp(0, self.size - 1)
        return counts, int(counts.max())

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        """x + η · the largest entries' signs / their number."""
        step = per_image(self.step, x).to(x.dtype)
        return x + step * largest_signs(gradient, self.counts, self.most)

    def saw(self, rose: Tensor) -> None:
        """The loss along the way does not count."""

    def review(self, best: Tensor, best_loss: Tensor, clean: Tensor) -> Tensor:
        """At a checkpoint: which images go on from their best iterate, bool (n,)."""
        support = (best != clean).flatten(1).sum(1)
        sparser = support / self.support < 0.95
        self.support = support
        self.counts, self.most = self.counts_of(support / self.size / 1.5)
        slower = (self.step / 1.5).clamp(self.eps / 10, self.eps)
        self.step = torch.where(sparser, self.eps, slower)
        return sparser


@dataclass
class _Images(_Rows):
    """What a run knows of each image that is still in it, (n, ...) each.

    Attributes:
        rows: which of the attacked images.
        place: which of those that the run began with.
        clean, x, before: clean image, iterate and the one before it.
        loss, gradient: of the iterate.
        best, best_loss, best_gradient: of the iterate with the highest loss.
        sound: bool, whether every loss was finite.
    """

    rows: Tensor
    place: Tensor
    clean: Tensor
    x: Tensor
    before: Tensor
    loss: Tensor
    gradient: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    sound: Tensor

    def go_back(self, chosen: Tensor) -> None:
        """Those chosen, bool (n,), go on from their best iterate."""
        mask = per_image(chosen, self.x)
        self.x = torch.where(mask, self.best, self.x)
        self.gradient = torch.where(mask, self.best_gradient, self.gradient)

    def keep_best(self) -> None:
        higher = self.loss > self.best_loss
        mask = per_image(higher, self.x)
        self.best = torch.where(mask, self.x, self.best)
        self.best_gradient = torch.where(mask, self.gradient, self.best_gradient)
        self.best_loss = torch.where(higher, self.loss, self.best_loss)


@dataclass(frozen=True)
class Climb:
    """One run in one ball; see `auto_ascend`. The gradient at the last iterate is not taken."""

    objective: Objective
    eps: float
    norm: str
    steps: int
    rho: float = 0.75
    eot: int = 1

    def __call__(
        self, start: Tensor, clean: Tensor, rows: Tensor, *, leave: bool, dense: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The strongest iterates, their losses (batch,) and the steps to the first success.

        Args:
            start: where to begin, in the ball; (batch, ...).
            clean: the centres of the balls, like start.
            rows: int64 (batch,), which of the objective's images they are.
            leave: an image leaves at its first success, which is its result.
            dense: l1 begins with 20% of the pixels instead of 1/1.5 of those that start moved.
        """
        count = len(start)
        result, final_loss = start.clone(), torch.full((count,), torch.nan, device=start.device)
        first = torch.full((count,), -1, dtype=torch.int64, device=start.device)
        lowest = torch.full_like(final_loss, -torch.inf)
        s = _Images(
            rows=rows, place=torch.arange(count, device=start.device), clean=clean, x=start,
            before=start, loss=lowest, gradient=start, best=start, best_loss=lowest,
            best_gradient=start, sound=torch.ones_like(first, dtype=torch.bool),
        )  # fmt: skip
        pace = self.pace(start, clean, dense)
        for k in range(self.steps + 1):
            if k > 0:
                s.x, s.before = self.move(s, pace, momentum=k > 1), s.x
            fooled = self.look(s, pace, k)
            if leave:
                s.loss, fooled = confirmed(self.objective, s.x, s.rows, s.loss, fooled, self.eot)
            first[s.place] = torch.where((first[s.place] < 0) & fooled, k, first[s.place])
            gone = torch.nonzero(fooled)[:, 0] if leave else first[:0]
            if len(gone):
                place, stay = s.place[gone], torch.nonzero(~fooled)[:, 0]
                result[place] = s.x[gone]
                final_loss[place] = torch.where(s.sound, s.loss, torch.nan)[gone]
                s.keep(stay)
                pace.keep(stay)
                if len(stay) == 0:
                    break
            s.keep_best()
            if k in pace.checkpoints and k < self.steps:
                s.go_back(pace.review(s.best, s.best_loss, s.clean))
        result[s.place] = s.best
        final_loss[s.place] = torch.where(s.sound, s.best_loss, torch.nan)
        check_finite(final_loss)
        if rounded(result) and len(s.place):
            final_loss[s.place], _ = exact(self.objective, s.best, s.rows, self.eot)
        return result, final_loss, first

    def pace(self, start: Tensor, clean: Tensor, dense: bool) -> _Halving | _Sparse:
        if self.norm == "l1":
            return _Sparse(start, clean, self.eps, self.steps, dense)
        return _Halving(start, self.norm, self.eps, self.steps, self.rho)

    def move(self, s: _Images, pace: _Halving | _Sparse, *, momentum: bool) -> Tensor:
        """The next iterate."""
        ahead = project(pace.move(s.x, s.gradient), s.clean, self.eps, self.norm)
        if self.norm == "l1":
            return ahead
        share = _MOMENTUM if momentum else 1.0
        mixed = s.x + (ahead - s.x) * share + (s.x - s.before) * (1 - share)
        return project(mixed, s.clean, self.eps, self.norm)

    def look(self, s: _Images, pace: _Halving | _Sparse, k: int) -> Tensor:
        """Loss and, where a step follows, gradient of the iterate; who is misclassified."""
        if k < self.steps:
            loss, s.gradient, fooled = value_and_gradient(self.objective, s.x, s.rows, self.eot)
        else:
            loss, fooled = value(self.objective, s.x, s.rows, self.eot)
        if k > 0:
            pace.saw(loss > s.loss)
        s.loss, s.sound = loss, s.sound & loss.isfinite()
        return fooled
