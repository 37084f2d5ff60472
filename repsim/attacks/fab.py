"""The Fast Adaptive Boundary attack (Croce and Hein 2020, arXiv 1907.02044, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repsim.attacks.ball import perturbation_norm
from repsim.attacks.gradient import check_finite, check_inputs, default_ids, frozen
from repsim.attacks.hyperplane import shift_onto_hyperplane
from repsim.attacks.minimum import Search, check_minimum, nearest_boundary, unmoved
from repsim.errors import UserError
from repsim.keyed import keyed_normal, keyed_uniform

# Size of random starts where neither eps nor an adversarial point limits it: the published
# implementation's default eps.
_START = {"linf": 0.3, "l2": 1.0, "l1": 5.0}


def fab(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | None = 8 / 255,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    targets: int = 0,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """The smallest perturbation that changes the class, by projections onto linearised boundaries.

    With π the nearest linearised boundary z_k = z_y at the iterate x, inside the box, and x₀ the
    clean image (equations 7 to 11):

        d = proj_π(x) - x,  d₀ = proj_π(x₀) - x₀,  α = min(‖d‖ / (‖d‖ + ‖d₀‖), alpha_max)
        x ← clip((1 - α)·(x + eta·d) + α·(x₀ + eta·d₀))

    and where x is then misclassified, it is kept if it is the nearest so far, and
    x ← x₀ + beta·(x - x₀). The final search along a segment of the paper is left out, as it is in
    the published implementation (it takes part in AutoAttack without).

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units that counts as a success, or None for no bound.
        norm: "linf", "l2" or "l1".
        steps: steps of each run.
        restarts: runs for each target; the first starts from the clean image, the others at
            random at the distance min(smallest found, eps) / 2 from it (in linf uniform in the
            cube and scaled, otherwise a normal direction).
        targets: 0: each step takes the nearest boundary of all classes, a backward for each
            wrong class. 9, say: one run towards each of the 9 most likely wrong classes, a
            backward a step, whatever the number of classes (FAB-T).
        alpha_max: greatest weight of the step from the clean image.
        eta: overshoot, at least 1.
        beta: how far an adversarial point is taken back towards the clean image.
        mode: what the result is for.
            "represent": the smallest adversarial perturbation found of each image, whatever its
            size: beyond eps as well. Clean where none was found.
            "evaluate" (and "last"): an image leaves as soon as it has an adversarial point
            within eps, which is its result; the clean image where there was none.
        seed: seed of the random starts, which are keyed by (seed, id, restart, target).
        ids: int64 (batch,) keys; the position in the batch by default.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), max_{i≠y} z_i - z_y at the result, and
            `first_success` (batch,), the steps after which an iterate was first misclassified
            and within eps (the fewest of the runs), 0 where the clean image is, -1 where none.

    Returns:
        The images, like inputs. Images that are misclassified already are not moved, nor are
        any for eps 0.

    Raises:
        UserError: images outside [0, 1]; labels that are none of the classes; outputs that are
            not (batch, classes); a setting that cannot be meant; logits or gradients that are not
            finite.
    """
    check_minimum(eps, norm, mode)
    if steps < 1 or restarts < 1 or targets < 0:
        raise UserError(
            "steps and restarts expect at least 1 and targets at least 0; got "
            f"{steps}, {restarts} and {targets}"
        )
    if not (0 <= alpha_max <= 1 <= eta and 0 <= beta <= 1 and eta < float("inf")):
        raise UserError(
            "alpha_max and beta expect numbers in [0, 1] and eta at least 1; got "
            f"{alpha_max!r}, {beta!r} and {eta!r}"
        )
    check_inputs(inputs, labels)
    ids = default_ids(inputs, ids)
    with frozen(model, train_mode=train_mode, like=inputs) as net:
        if eps == 0 or len(inputs) == 0:
            return unmoved(net, inputs, labels, record)
        search = Search(net, inputs, labels, eps, norm, mode)
        descend = _Descend(search, steps, alpha_max, eta, beta)
        wrong = search.others.shape[1]
        for target in range(min(targets, wrong) or 1):
            others = search.others[:, target : target + 1] if targets else search.others
            for restart in range(restarts):
                rows = search.remaining()
                if len(rows) == 0:
                    break
                start = search.clean[rows]
                if restart > 0:
                    start = _random_start(search, rows, ids, seed, (target << 20) + restart)
                descend.run(start, rows, others)
        return search.finish(record)


class _Graph:
    """Iterates with the graph of their logits; `kept` are the positions of those still there."""

    def __init__(self, search: Search, x: Tensor, rows: Tensor) -> None:
        self.rows, self.kept = rows, torch.arange(len(rows), device=rows.device)
        self.leaf, self.logits = search.forward(x[rows])


@dataclass(frozen=True)
class _Descend:
    """One run of algorithm 1; see `fab` for the settings."""

    search: Search
    steps: int
    alpha_max: float
    eta: float
    beta: float

    def run(self, start: Tensor, rows: Tensor, others: Tensor) -> None:
        """All steps from `start` (rows, n) of the images `rows`; finds go to the search.

        The forward that classifies an iterate is also that of its next linearisation, unless the
        iterate is adversarial and so moved back. That is foreseen from the step before, as such
        images stay about the boundary: those expected to cross it are classified without a
        graph, which would be thrown away.
        """
        search = self.search
        x = search.clean.clone()
        x[rows] = search.rounded(start)
        gap, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        broken = torch.zeros_like(gap)
        crossed = torch.zeros_like(gap, dtype=torch.bool)
        done = torch.zeros_like(crossed)
        graphs = [_Graph(search, x, rows)]
        for step in range(1, self.steps + 1):
            while graphs:  # each freed before the next is built
                graph = graphs.pop()
                at, kept = graph.rows, graph.kept
                f, w, _ = nearest_boundary(
                    graph.leaf, graph.logits, search.labels[at], others[at], search.norm
                )
                gap[at[kept]], gradient[at[kept]] = f[kept], w[kept]
                broken[at] += 0 * f  # NaN stays, and is looked at once
            clean = search.clean[rows]
            x[rows] = search.rounded(self._move(x[rows], clean, gap[rows], gradient[rows]))

            last = step == self.steps
            blind = crossed[rows] | last
            seen, unseen = rows[~blind], rows[blind]
            if len(seen):
                graphs.append(_Graph(search, x, seen))
                crossed[seen], done[seen] = self._look(x, seen, graphs[0].logits, step)
            if len(unseen):
                logits = search.predict(x[unseen])
                crossed[unseen], done[unseen] = self._look(x, unseen, logits, step)
            rows = rows[~done[rows]]
            if last or len(rows) == 0:
                break
            back = rows[crossed[rows]]
            x[back] = search.rounded(search.clean[back].lerp(x[back], self.beta))
            in_graph = torch.zeros_like(done)
            if graphs:
                kept = (~crossed[seen] & ~done[seen]).nonzero()[:, 0]
                # The others cost backwards if the graph is used, and those kept a forward if it
                # is not: whichever is less.
                if (len(seen) - len(kept)) * others.shape[1] > len(kept):
                    graphs.clear()
                else:
                    graphs[0].kept, in_graph[seen[kept]] = kept, True
            anew = rows[~in_graph[rows]]
            if len(anew):
                graphs.append(_Graph(search, x, anew))
        check_finite(broken)

    def _look(self, x: Tensor, rows: Tensor, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Which iterates are adversarial, and which images are done with."""
        hit = logits.argmax(1) != self.search.labels[rows]
        return hit, self.search.offer(rows, x[rows], logits, hit, step)

    def _move(self, x: Tensor, clean: Tensor, gap: Tensor, gradient: Tensor) -> Tensor:
        """The step of `fab`'s docstring, (rows, n) flat."""
        norm = self.search.norm
        # ⟨w, clean⟩ from the difference: from the offset f - ⟨w, x⟩ most digits cancel.
        gap_clean = torch.linalg.vecdot(gradient, x - clean) - gap
        ahead = shift_onto_hyperplane(x, gradient, -gap, norm)
        aside = shift_onto_hyperplane(clean, gradient, gap_clean, norm)
        near = perturbation_norm(ahead, norm).clamp_min(1e-8)
        far = perturbation_norm(aside, norm).clamp_min(1e-8)
        alpha = (near / (near + far)).clamp_max(self.alpha_max).to(x.dtype)[:, None]
        return (
            ahead.mul_(self.eta).add_(x).lerp(aside.mul_(self.eta).add_(clean), alpha).clamp_(0, 1)
        )


def _random_start(search: Search, rows: Tensor, ids: Tensor, seed: int, stream: int) -> Tensor:
    """Points (rows, n) half as far from the clean images as is of interest, inside the box."""
    shape = (search.clean.shape[1],)
    if search.norm == "linf":
        direction = keyed_uniform(ids[rows], shape, seed=seed, stream=stream) * 2 - 1
    else:
        direction = keyed_normal(ids[rows], shape, seed=seed, stream=stream)
    direction = direction / perturbation_norm(direction, search.norm)[:, None]
    radius = search.distance[rows]
    if search.eps is None:
        radius = torch.where(radius == torch.inf, _START[search.norm], radius)
    else:
        radius = radius.clamp_max(search.eps)
    clean = search.clean[rows]
    return (clean + (0.5 * radius[:, None] * direction).to(clean.dtype)).clamp_(0, 1)
