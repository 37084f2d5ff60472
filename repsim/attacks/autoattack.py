"""AutoAttack: a fixed cascade of attacks without a setting to choose.

Croce and Hein 2020 (arXiv 2003.01690); l1 from Croce and Hein 2021 (arXiv 2103.01208).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repsim.attacks.apgd import apgd
from repsim.attacks.ascend import MODES
from repsim.attacks.ball import check_ball, perturbation_norm
from repsim.attacks.fab import fab
from repsim.attacks.gradient import (
    check_finite,
    check_inputs,
    check_logits,
    default_ids,
    frozen,
)
from repsim.attacks.square import square
from repsim.errors import UserError
from repsim.losses import margin


@dataclass(frozen=True)
class Stage:
    """One attack of the cascade with its budget."""

    name: str
    attack: Callable[..., Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


def _apgd(name: str, **settings: Any) -> Stage:
    return Stage(name, apgd, {"steps": 100, **settings})


_APGD_CE = _apgd("apgd-ce", loss="ce")
_APGD_T = _apgd("apgd-t", loss="dlr-targeted", targets=9)
_FAB_T = Stage("fab-t", fab, {"steps": 100, "targets": 9})
_SQUARE = Stage("square", square, {"queries": 5000})

# The published budgets; checked against those of the authors' code in tests/test_autoattack.py.
_VERSIONS: dict[str, tuple[Stage, ...]] = {
    "standard": (_APGD_CE, _APGD_T, _FAB_T, _SQUARE),
    "plus": (
        _apgd("apgd-ce", loss="ce", restarts=5),
        _apgd("apgd-dlr", loss="dlr", restarts=5),
        Stage("fab", fab, {"steps": 100, "restarts": 5}),
        _SQUARE,
        _APGD_T,
        _FAB_T,
    ),
    "rand": (_apgd("apgd-ce", loss="ce", eot=20), _apgd("apgd-dlr", loss="dlr", eot=20)),
    "short": (
        _apgd("apgd-ce", loss="ce", steps=30),
        _apgd("apgd-t", loss="dlr-targeted", targets=3, steps=30),
        Stage("square", square, {"queries": 200}),
    ),
}
_STANDARD_L1 = (
    _apgd("apgd-ce", loss="ce", restarts=5),
    _apgd("apgd-t", loss="dlr-targeted", targets=5),
    _FAB_T,
    _SQUARE,
)
VERSIONS = tuple(_VERSIONS)


def stages(version: str, norm: str) -> tuple[Stage, ...]:
    """The attacks of a version with their budgets, in their order.

    Raises:
        UserError: no such version.
    """
    if version not in _VERSIONS:
        raise UserError(f"version expects one of {', '.join(VERSIONS)}; got {version!r}")
    if version == "standard" and norm == "l1":
        return _STANDARD_L1
    return _VERSIONS[version]


def autoattack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    version: str = "standard",
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Tensor:
    """A cascade of attacks, each on the images that are still classified correctly.

    - standard: APGD-CE (100 steps), targeted APGD-DLR (100 × 9 targets), targeted FAB (100 × 9),
      Square (5,000 queries); for l1 five restarts of APGD-CE and 5 targets of APGD.
    - plus: APGD-CE and APGD-DLR with 5 restarts, FAB with 5, Square, then the targeted two.
    - rand: APGD-CE and APGD-DLR, each gradient the mean of 20: for networks that draw at random.
    - short: APGD-CE (30), targeted APGD-DLR (30 × 3), Square (200). Not the standard: made for a
      laptop, and an upper bound of what the standard leaves.

    With fewer than 10 classes there are as many targets as wrong classes.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units.
        norm: "linf", "l2" or "l1".
        version: "standard", "plus", "rand" or "short".
        mode: "evaluate" (and "last"): an image leaves at its first success, which is its result;
            one that stays robust comes back clean, as does one that is misclassified clean.
            "represent": all images go through the gradient attacks at full strength, those that
            they do not fool through the others as well; of all results the one with the largest
            margin of a wrong class is kept, so that every image is moved.
        seed, ids: of the draws, which are keyed by (seed, id).
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), the margin max_{i≠y} z_i - z_y at the result;
            `first_success` (batch,), steps within the stage that succeeded, -1 for none; and
            `stage` (batch,), its number in `stages(version, norm)`, -1 for none.
        tell: called with a line after each stage.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: images outside [0, 1]; labels that are none of the classes; an unknown version,
            norm or mode; a loss or gradient that is not finite.
    """
    check_ball(eps, norm)
    cascade = stages(version, norm)
    if mode not in MODES:
        raise UserError(f"mode expects one of {', '.join(MODES)}; got {mode!r}")
    check_inputs(inputs, labels)
    inputs, ids = inputs.detach(), default_ids(inputs, ids)
    full = mode == "represent"
    with frozen(model, train_mode=train_mode):
        result, (best, fooled, classes) = inputs.clone(), _look(model, inputs, labels)
        first = torch.where(fooled, 0, -1)
        stage_of = torch.full_like(first, -1)
        if full and eps > 0:
            best = torch.full_like(best, -torch.inf)  # the clean image is no attacked image
        for number, stage in enumerate(cascade if eps > 0 else ()):
            everyone = full and stage.attack is apgd
            rows = torch.nonzero(~fooled | everyone)[:, 0]
            if len(rows) == 0:
                continue
            found: dict[str, Tensor] = {}
            attacked = stage.attack(
                model, inputs[rows], labels[rows], eps=eps, norm=norm, seed=seed, ids=ids[rows],
                mode=mode, train_mode=train_mode, record=found, **_fitting(stage.settings, classes),
            )  # fmt: skip
            # On the network itself, not on a faster copy: a verdict that a rounding decided
            # there would keep the image from the attacks that follow.
            size, won, _ = _look(model, attacked, labels[rows])
            # At full strength an attack of the smallest norm returns points outside the ball too.
            inside = perturbation_norm(attacked - inputs[rows], norm) <= eps * (1 + 1e-5)
            won &= inside
            chosen = (size > best[rows]) & inside if full else won
            result[rows[chosen]], best[rows[chosen]] = attacked[chosen], size[chosen]
            new = won & ~fooled[rows]
            first[rows[new]], stage_of[rows[new]] = found["first_success"][new], number
            fooled[rows[new]] = True
            if tell is not None:
                tell(f"{stage.name}: {int((~fooled).sum())} of {len(inputs)} images still right")
    if record is not None:
        record.update(loss=best, first_success=first, stage=stage_of)
    return result


def _fitting(settings: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """A stage's settings; with two classes there is no third logit for the dlr loss."""
    fitting = dict(settings)
    if fitting.get("loss") == "dlr" and classes < 3:
        fitting["loss"] = "margin"
    return fitting


@torch.no_grad()
def _look(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Margin of a wrong class and whether the image is misclassified, (batch,), and the classes.

    In float32, whatever precision the attacks run in.
    """
    with torch.autocast(x.device.type, enabled=False):
        logits = model(x)
    check_logits(logits, labels)
    size = margin(logits, labels)
    check_finite(size)
    return size, logits.argmax(1) != labels, logits.shape[1]
