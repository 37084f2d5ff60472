"""Attacks on the activation of a layer: away from its clean value, or towards another image's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.attacks.activation import activations, unattainable
from repsim.attacks.ascend import ascend, check_settings
from repsim.attacks.gradient import check_inputs
from repsim.errors import UserError

DISTANCES = ("l2", "cosine")


def feature(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor | None,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    start: str = "random",
    layer: str | None = None,
    distance: str = "l2",
    towards: str = "away",
    guides: Tensor | None = None,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """max d(φ(x + δ), φ(x)), or min d(φ(x + δ), φ(guide)), over ‖δ‖ <= eps; φ a layer's activation.

    The second is Sabour et al. 2016 (arXiv 1511.05122, equation 1): the image keeps its look and
    takes the representation of the guide.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> anything.
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,); needed only to choose guides.
        eps, norm, steps, step_size, restarts: see `repsim.attacks.pgd`.
        start: "random" or "clean"; away from the clean image only "random", since the distance
            has no gradient where it is 0.
        layer: a name that `repsim layers` lists; the pooled features, which the network's head
            takes, by default.
        distance: "l2" ‖a - b‖₂, or "cosine" 1 - a·b/(‖a‖‖b‖), of flattened activations.
        towards: "away" from the image's own activation, or to the "other" image's.
        guides: images like inputs, one for each; by default the next image of the batch that has
            another label (after the last comes the first), so that the result depends on the
            batch.
        mode: as in `pgd`; nothing is ever reached, so "evaluate" gives the last iterate.
        seed, ids: of the random starts.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), the distance at the result (its negative for
            "other"), and `first_success`, all -1.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: images outside [0, 1]; no such layer; no guide to choose; a setting that cannot
            be meant; a loss or gradient that is not finite.
    """
    check_settings(
        eps=eps, norm=norm, steps=steps, step_size=step_size, restarts=restarts, start=start
    )
    if distance not in DISTANCES:
        raise UserError(f"distance expects one of {', '.join(DISTANCES)}; got {distance!r}")
    if towards not in ("away", "other"):
        raise UserError(f"towards expects 'away' or 'other'; got {towards!r}")
    if towards == "away" and start == "clean":
        raise UserError(
            "towards=away expects start=random: at the clean image the distance has no gradient"
        )
    if towards == "away" and guides is not None:
        raise UserError("guides expect towards=other; got away")
    check_inputs(inputs, labels)
    inputs = inputs.detach()
    aims = inputs
    if towards == "other":
        aims = inputs[next_of_another_class(labels)] if guides is None else guides.detach()
        check_inputs(aims, None)
        if aims.shape != inputs.shape:
            raise UserError(
                f"guides expect the shape of the images, {tuple(inputs.shape)}; got "
                f"{tuple(aims.shape)}"
            )
    sign = 1 if towards == "away" else -1
    with activations(model, inputs, layer, train_mode=train_mode) as read:
        with torch.no_grad():
            target = read(aims).flatten(1)

        def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            found = read(x).flatten(1)
            if distance == "l2":
                size = torch.linalg.vector_norm(found - target[rows], dim=1)
            else:
                size = 1 - F.cosine_similarity(found, target[rows], dim=1)
            return sign * size, unattainable(x)

        return ascend(
            objective, inputs, eps=eps, norm=norm, steps=steps, step_size=step_size,
            restarts=restarts, start=start, mode=mode, seed=seed, ids=ids, record=record,
        )  # fmt: skip


def next_of_another_class(labels: Tensor | None) -> Tensor:
    """For each image the first after it, cyclically, that has another label: int64 (batch,).

    Raises:
        UserError: no labels, or all are the same.
    """
    if labels is None:
        raise UserError("towards=other expects labels or guides; got neither")
    count = len(labels)
    if count and bool((labels == labels[0]).all()):
        raise UserError(
            "towards=other expects images of two classes at least in a batch, or guides; got "
            f"{count} of class {int(labels[0])}; try a larger batch or towards=away"
        )
    place = torch.arange(count, device=labels.device)
    ahead = (place - place[:, None]) % max(count, 1)  # (batch, batch)
    ahead = ahead.masked_fill(labels == labels[:, None], count)
    return ahead.argmin(1) if count else place
