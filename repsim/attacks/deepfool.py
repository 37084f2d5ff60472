"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repsim.attacks.gradient import check_finite, check_inputs, frozen
from repsim.attacks.minimum import Search, check_minimum, nearest_boundary, unmoved
from repsim.errors import UserError

# Added to every step's length, in pixel units, so that steps do not vanish in front of the
# boundary; from the authors' code.
_LEAST = 1e-4


def deepfool(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float | None = None,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    classes: int = 10,
    mode: str = "represent",
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """Steps onto the nearest linearised boundary until the class changes.

    With f_k = z_k - z_y and w_k its gradient at the iterate, k̂ = arg min_k |f_k| / ‖w_k‖* and

        l2:   r ← r + (|f_k̂| / ‖w_k̂‖₂ + 1e-4) · w_k̂ / ‖w_k̂‖₂
        linf: r ← r + (|f_k̂| / ‖w_k̂‖₁ + 1e-4) · sign(w_k̂)
        x ← clip(x₀ + (1 + overshoot)·r)

    (equations 8 to 12; gradients are taken at the overshot x and 1e-4 is added as in the
    authors' code). The first adversarial x is the result. The box is no part of the linear
    problem: images with many pixels at 0 or 1 are better served by `repsim.attacks.fab`.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units that counts as a success; no bound by default.
        norm: "l2" or "linf".
        steps: the most that are made.
        overshoot: how far beyond the boundary, as a share of r.
        classes: of the clean image, how many of the most likely classes are looked at, the
            label among them; a backward for each wrong one.
        mode: what the result is for.
            "represent": the adversarial point found, whatever its size, beyond eps as well; the
            clean image where none was found.
            "evaluate" (and "last"): the clean image also where it is beyond eps.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), max_{i≠y} z_i - z_y at the result, and
            `first_success` (batch,), the steps after which the image was misclassified and
            within eps, 0 where the clean image is, -1 where it never was.

    Returns:
        The images, like inputs. Images that are misclassified already are not moved, nor are
        any for eps 0.

    Raises:
        UserError: images outside [0, 1]; labels that are none of the classes; outputs that are
            not (batch, classes); a setting that cannot be meant; logits or gradients that are not
            finite.
    """
    check_minimum(eps, norm, mode, norms=("linf", "l2"))
    if steps < 1 or classes < 2:
        raise UserError(
            f"steps expects at least 1 and classes at least 2; got {steps} and {classes}"
        )
    if not 0 <= overshoot < float("inf"):
        raise UserError(f"overshoot expects a number of at least 0; got {overshoot!r}")
    check_inputs(inputs, labels)
    with frozen(model, train_mode=train_mode, like=inputs) as net:
        if eps == 0 or len(inputs) == 0:
            return unmoved(net, inputs, labels, record)
        search = Search(net, inputs, labels, eps, norm, mode)
        rows = search.remaining()
        others = search.others[:, : classes - 1]
        total = torch.zeros_like(search.clean)
        broken = torch.zeros_like(total[:, 0])
        found = torch.zeros_like(total[:, 0], dtype=torch.bool)
        if len(rows):
            leaf, logits = search.forward(search.clean[rows])
        for step in range(1, steps + 1):
            if len(rows) == 0:
                break
            gap, gradient, size = nearest_boundary(leaf, logits, labels[rows], others[rows], norm)
            broken[rows] += 0 * gap  # NaN stays, and is looked at once
            size = size.clamp_min(torch.finfo(size.dtype).tiny)
            length = (gap.abs() / size + _LEAST)[:, None]
            unit = gradient.sign() if norm == "linf" else gradient / size[:, None]
            total[rows] += length * unit
            ahead = search.clean[rows].add(total[rows], alpha=1 + overshoot).clamp_(0, 1)
            x = search.rounded(ahead)
            leaf, logits = search.forward(x)  # gives this iterate's class and the next step
            hit = (logits.argmax(1) != labels[rows]) & ~found[rows]
            search.offer(rows, x, logits, hit, step)
            found[rows] |= hit
            staying = (~found[rows]).nonzero()[:, 0]
            # Images that are found cost backwards while they stay in the graph, and the others
            # a forward if it is built anew without them: whichever is less.
            if (len(rows) - len(staying)) * others.shape[1] > len(staying):
                rows = rows[staying]
                if len(rows) and step < steps:
                    leaf, logits = search.forward(x[staying])
        check_finite(broken)
        return search.finish(record)
