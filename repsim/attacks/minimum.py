"""What attacks share that look for the smallest perturbation rather than the strongest in a ball.

They work on flat images (rows, n) in at least float32; `rows` are indices of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from repsim.attacks.ascend import MODES
from repsim.attacks.ball import NORMS, check_ball, perturbation_norm
from repsim.attacks.gradient import check_finite, check_logits
from repsim.errors import UserError
from repsim.losses import margin


def check_minimum(eps: float | None, norm: str, mode: str, norms: tuple[str, ...] = NORMS) -> None:
    """Refuse an eps, norm or mode that cannot be meant; eps None is no bound.

    Raises:
        UserError: names the setting, what was expected and what came.
    """
    if norm not in norms:
        raise UserError(f"norm expects one of {', '.join(norms)}; got {norm!r}")
    if eps is not None:
        check_ball(eps, norm)
    if mode not in MODES:
        raise UserError(f"mode expects one of {', '.join(MODES)}; got {mode!r}")


@dataclass
class Search:
    """The smallest adversarial perturbation found so far of each image of a batch.

    In "represent" the smallest of any size is kept. In "evaluate" (and "last") the first within
    eps is the result, and an image without one stays clean. Images that are misclassified
    already are not moved.

    Attributes:
        net: pixel model -> logits.
        inputs: the batch as it came.
        labels: int64 (batch,).
        eps: radius, or None.
        norm: of the perturbations.
        mode: see above.
        clean: (batch, n) the images, flat.
        logits: (batch, classes) of the clean images.
        others: int64 (batch, classes - 1), the wrong classes, the most likely first.
        distance: (batch,) float32 norm of the smallest found; inf before, 0 for misclassified.
    """

    net: nn.Module
    inputs: Tensor
    labels: Tensor
    eps: float | None
    norm: str
    mode: str
    clean: Tensor = field(init=False)
    logits: Tensor = field(init=False)
    others: Tensor = field(init=False)
    distance: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """One forward of the clean images.

        Raises:
            UserError: outputs that are no logits or not finite; labels that do not fit.
        """
        self.inputs = self.inputs.detach()
        # Flat images in float64 stay in it; halves are widened: sums of 3,072 of them are not.
        wide = torch.promote_types(self.inputs.dtype, torch.float32)
        self.clean = self.inputs.flatten(1).to(wide)
        with torch.no_grad():
            logits = self.net(self.inputs)
        check_logits(logits, self.labels)
        self.logits = logits.to(wide)
        self._loss = margin(logits, self.labels)
        check_finite(self._loss)
        wrong = self.logits.scatter(1, self.labels[:, None], -torch.inf)
        self.others = wrong.topk(logits.shape[1] - 1, dim=1).indices
        missed = self.logits.argmax(1) != self.labels
        self.distance = torch.where(missed, 0.0, torch.inf).to(self._loss)
        self._result = self.clean.clone()
        self._first = missed.long() - 1

    def remaining(self) -> Tensor:
        """Rows still to be attacked: all classified correctly; in "evaluate" none found yet."""
        sought = self.distance > 0 if self.mode == "represent" else self.distance == torch.inf
        return sought.nonzero()[:, 0]

    def images(self, flat: Tensor) -> Tensor:
        """(rows, n) -> (rows, c, h, w) in the dtype and memory format of the inputs."""
        shaped = flat.view(-1, *self.inputs.shape[1:]).to(self.inputs.dtype)
        if self.inputs.dim() == 4 and self.inputs.is_contiguous(memory_format=torch.channels_last):
            return shaped.contiguous(memory_format=torch.channels_last)
        return shaped

    def rounded(self, flat: Tensor) -> Tensor:
        """Flat images as the network sees them: what is measured must be what is returned."""
        return flat.to(self.inputs.dtype).to(flat.dtype)

    def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """The images, to be differentiated by, and their logits with a graph."""
        leaf = self.images(flat).detach().requires_grad_(True)
        with torch.enable_grad():
            return leaf, self.net(leaf).to(self.clean.dtype)

    def predict(self, flat: Tensor) -> Tensor:
        """The logits of flat images, without a graph."""
        with torch.no_grad():
            return self.net(self.images(flat)).to(self.clean.dtype)

    def offer(self, rows: Tensor, flat: Tensor, logits: Tensor, hit: Tensor, step: int) -> Tensor:
        """Keep those of the iterates that are adversarial and smaller than what was found.

        Args:
            rows: int64 (rows,).
            flat: iterates (rows, n), rounded.
            logits: (rows, classes) of the iterates.
            hit: bool (rows,), which of them are adversarial.
            step: steps made until here.

        Returns:
            bool (rows,): the images whose attack ends with this; none in "represent".
        """
        distance = perturbation_norm(flat - self.clean[rows], self.norm)
        within = hit & (distance <= (math.inf if self.eps is None else self.eps))
        better = (hit if self.mode == "represent" else within) & (distance < self.distance[rows])
        self._result[rows] = torch.where(better[:, None], flat, self._result[rows])
        self.distance[rows] = torch.where(better, distance, self.distance[rows])
        loss = margin(logits.detach(), self.labels[rows])
        self._loss[rows] = torch.where(better, loss, self._loss[rows])
        first = self._first[rows]
        earlier = within & ((first < 0) | (step < first))
        self._first[rows] = torch.where(earlier, step, first)
        return within if self.mode != "represent" else torch.zeros_like(within)

    def finish(self, record: dict[str, Tensor] | None) -> Tensor:
        """The results, like the inputs; the record filled."""
        check_finite(self._loss)
        if record is not None:
            record.update(loss=self._loss, first_success=self._first)
        # Through the flat form and back the bits of an unmoved image are the same.
        return self.images(self._result)


def unmoved(
    net: nn.Module, inputs: Tensor, labels: Tensor, record: dict[str, Tensor] | None
) -> Tensor:
    """The images themselves: what eps 0, or a batch without images, leaves."""
    loss = torch.zeros(len(inputs), device=inputs.device)
    if record is not None and len(inputs):
        with torch.no_grad():
            logits = net(inputs)
        check_logits(logits, labels)
        loss = margin(logits, labels)
        check_finite(loss)
        fooled = logits.argmax(1) != labels
        record.update(loss=loss, first_success=fooled.long() - 1)
    elif record is not None:
        record.update(loss=loss, first_success=torch.zeros_like(loss, dtype=torch.int64))
    return inputs.detach().clone()


def nearest_boundary(
    leaf: Tensor, logits: Tensor, own: Tensor, others: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of the linearised boundaries z_k = z_y: arg min_k |f_k| / ‖∇f_k‖*, f = z_k - z_y.

    One backward for each class looked at, all through one graph, which is freed at the end; of
    the gradients only the best is kept. Croce and Hein 2020 (arXiv 1907.02044), equation 7;
    Moosavi-Dezfooli et al. 2016 (arXiv 1511.04599), algorithm 2.

    Args:
        leaf: images (rows, c, h, w) from which the logits were computed.
        logits: (rows, classes) with a graph.
        own: int64 (rows,), y.
        others: int64 (rows, m), the classes k to look at.
        norm: norm of the perturbation; ‖·‖* is its dual.

    Returns:
        f (rows,), its gradient (rows, n), and ‖gradient‖* (rows,). Where a value or gradient of
        any class is not finite, f is NaN.
    """
    gap, gradient = _boundary(leaf, logits, own, others[:, 0], last=others.shape[1] == 1)
    size = dual_norm(gradient, norm)
    distance, broken = _distance(gap, size), ~torch.isfinite(gap + size)
    for j in range(1, others.shape[1]):
        f, w = _boundary(leaf, logits, own, others[:, j], last=j == others.shape[1] - 1)
        length = dual_norm(w, norm)
        broken |= ~torch.isfinite(f + length)
        nearer = _distance(f, length) < distance
        distance = torch.where(nearer, _distance(f, length), distance)
        gap, size = torch.where(nearer, f, gap), torch.where(nearer, length, size)
        gradient = torch.where(nearer[:, None], w, gradient)
    return gap.masked_fill(broken, torch.nan), gradient, size


def _boundary(
    leaf: Tensor, logits: Tensor, own: Tensor, other: Tensor, *, last: bool
) -> tuple[Tensor, Tensor]:
    """z_other - z_own (rows,) and its gradient (rows, n); the graph is freed after the last."""
    with torch.enable_grad():
        gap = logits.gather(1, other[:, None])[:, 0] - logits.gather(1, own[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(gap.sum(), leaf, retain_graph=not last)
    return gap.detach(), gradient.flatten(1).to(logits.dtype)


def _distance(gap: Tensor, size: Tensor) -> Tensor:
    return gap.abs() / size.clamp_min(torch.finfo(size.dtype).tiny)


def dual_norm(gradient: Tensor, norm: str) -> Tensor:
    """‖gradient‖*, (rows, n) -> (rows,): l1 for linf, l2 for l2, linf for l1."""
    if norm == "linf":
        return gradient.abs().sum(1)
    largest = gradient.abs().amax(1)
    if norm == "l1":
        return largest
    # Scaled: the square of a gradient of 1e-30 underflows to 0.
    scale = largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scale * (gradient / scale[:, None]).norm(dim=1)
