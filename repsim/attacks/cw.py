"""Carlini and Wagner's l2 attack (2017, arXiv 1608.04644, section VI.A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repsim.attacks.gradient import check_finite, check_inputs, frozen
from repsim.attacks.minimum import Search, check_minimum, unmoved
from repsim.errors import UserError
from repsim.losses import margin

_INSIDE = 0.999999  # shrinks pixels off 0 and 1, where artanh is infinite; from the authors' code
_PROGRESS = 0.9999  # of the loss: what a tenth of the steps must get below; from the same
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam's own defaults (Kingma and Ba, arXiv 1412.6980)


def cw(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | None = None,
    norm: str = "l2",
    steps: int = 1000,
    binary_search: int = 9,
    step_size: float = 0.01,
    confidence: float = 0.0,
    initial_const: float = 1e-3,
    abort_early: bool = True,
    mode: str = "represent",
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """min_v ‖x - x₀‖₂² + c · max(0, z_y - max_{i≠y} z_i + confidence), x = (tanh v + 1) / 2.

    By Adam on v, of each image on its own, from v = artanh(2x₀ - 1). c starts at initial_const,
    grows tenfold until an adversarial point was found, and is then searched by bisection: the
    smallest c that succeeds gives the smallest perturbation (f6 and the search of the paper).

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: l2 radius in pixel units that counts as a success; no bound by default.
        norm: "l2".
        steps: the most steps of Adam for one c. The authors' code has 10000, at up to ten times
            the cost.
        binary_search: values of c that are tried. From 10 on the last is the largest bound, as
            in the authors' code.
        step_size: Adam's learning rate.
        confidence: by how much another logit must exceed the label's, at least 0.
        initial_const: the first c, above 0.
        abort_early: end an image's steps with this c where a tenth of them brought its loss
            down by less than 0.01 per cent. (The authors' code looks at the loss of the whole
            batch, which couples the images.)
        mode: what the result is for.
            "represent": the smallest adversarial perturbation found, whatever its size, beyond
            eps as well. Clean where none was found.
            "evaluate" (and "last"): an image leaves as soon as it has an adversarial point
            within eps, which is its result; the clean image where there was none.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), max_{i≠y} z_i - z_y at the result, and
            `first_success` (batch,), the steps after which an iterate was first adversarial
            and within eps (counted from the start of its c, the fewest of all c), 0 where the
            clean image is, -1 where none was.

    Returns:
        The images, like inputs. Images that are misclassified already are not moved, nor are
        any for eps 0.

    Raises:
        UserError: images outside [0, 1]; labels that are none of the classes; outputs that are
            not (batch, classes); a setting that cannot be meant; a loss or gradient that is not
            finite.
    """
    check_minimum(eps, norm, mode, norms=("l2",))
    if steps < 1 or binary_search < 1:
        raise UserError(
            f"steps and binary_search expect at least 1; got {steps} and {binary_search}"
        )
    if not (0 < step_size < math.inf and 0 < initial_const < math.inf):
        raise UserError(
            "step_size and initial_const expect numbers above 0; got "
            f"{step_size!r} and {initial_const!r}"
        )
    if not 0 <= confidence < math.inf:
        raise UserError(f"confidence expects a number of at least 0; got {confidence!r}")
    check_inputs(inputs, labels)
    with frozen(model, train_mode=train_mode, like=inputs) as net:
        if eps == 0 or len(inputs) == 0:
            return unmoved(net, inputs, labels, record)
        search = Search(net, inputs, labels, eps, norm, mode)
        const = torch.full_like(search.clean[:, 0], initial_const)
        low, high = torch.zeros_like(const), torch.full_like(const, torch.inf)
        for trial in range(binary_search):
            rows = search.remaining()
            if len(rows) == 0:
                break
            if binary_search >= 10 and trial == binary_search - 1:
                const = high.clamp_max(1e10)
            found = _minimise(
                search, rows, const, steps=steps, step_size=step_size, confidence=confidence,
                abort_early=abort_early,
            )  # fmt: skip
            high, low = torch.where(found, const, high), torch.where(found, low, const)
            const = torch.where(high == torch.inf, const * 10, (low + high) / 2)
        return search.finish(record)


def _minimise(
    search: Search,
    rows: Tensor,
    const: Tensor,
    *,
    steps: int,
    step_size: float,
    confidence: float,
    abort_early: bool,
) -> Tensor:
    """Adam for one c an image; which images (batch,) had an adversarial iterate."""
    every = math.ceil(steps / 10)
    found = torch.zeros_like(const, dtype=torch.bool)
    broken = torch.zeros_like(const)
    last_loss = torch.full_like(const[rows], torch.inf)
    clean = search.clean[rows]
    v = torch.atanh((2 * clean - 1) * _INSIDE)
    origin = (v.tanh() + 1) / 2  # the clean image but for _INSIDE: distances are taken to it
    mean, square = torch.zeros_like(v), torch.zeros_like(v)
    for step in range(steps):
        curve = v.tanh()
        ahead = (curve + 1) / 2
        x = search.rounded(ahead)
        leaf, logits = search.forward(x)
        own = search.labels[rows]
        with torch.enable_grad():
            hinge = (confidence - margin(logits, own)).clamp_min(0)
            (slope,) = torch.autograd.grad(hinge.sum(), leaf)
        shift = ahead - origin
        loss = const[rows] * hinge.detach() + shift.square().sum(1)
        slope = slope.flatten(1).to(v.dtype)
        broken[rows] += 0 * (loss + slope.abs().sum(1))  # NaN stays, and is looked at once
        hit = (logits.detach().argmax(1) != own) & (hinge.detach() == 0)
        found[rows] |= hit
        leaving = search.offer(rows, x, logits, hit, step)

        # dx/dv = (1 - tanh² v) / 2
        gradient = (const[rows, None] * slope + 2 * shift) * (1 - curve.square()) / 2
        mean.lerp_(gradient, 1 - _BETA1)
        square.lerp_(gradient.square(), 1 - _BETA2)
        rate = step_size / (1 - _BETA1 ** (step + 1))
        v = v - rate * mean / ((square / (1 - _BETA2 ** (step + 1))).sqrt() + _TINY)

        if abort_early and step % every == 0:
            stuck = ~(loss <= _PROGRESS * last_loss)
            last_loss = loss
            leaving = leaving | stuck
        elif search.mode == "represent":
            continue  # nobody leaves: no need to look
        staying = (~leaving).nonzero()[:, 0]
        if len(staying) < len(rows):
            rows, v, origin, mean, square, last_loss = (
                state[staying] for state in (rows, v, origin, mean, square, last_loss)
            )
            if len(rows) == 0:
                break
    check_finite(broken)
    return found
