"""Random signs of the attack's size: the control of every finding about attacks."""

from __future__ import annotations

import math

from torch import Tensor, nn

from repsim.attacks.ball import check_ball
from repsim.attacks.gradient import check_inputs, default_ids
from repsim.keyed import keyed_sign

# Keeps the control's draws apart from the random starts of the attacks (streams 0, 1, 2, ...).
_STREAM = 1 << 32


def noise(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    seed: int = 0,
    ids: Tensor | None = None,
) -> Tensor:
    """eps · random sign, clipped to [0, 1]: as large as the attack, in no direction.

    For l2 the signs are scaled to norm eps (before clipping). The model is not used; it is an
    argument because every attack takes it.

    Args:
        model: not used.
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,), not used.
        eps: size in pixel units.
        norm: "linf" or "l2".
        seed: seed of the draws, which are keyed by (seed, id).
        ids: int64 (batch,) keys; the position in the batch by default.

    Returns:
        Noisy images, like inputs.

    Raises:
        UserError: images outside [0, 1]; an eps or norm that cannot be meant.
    """
    check_ball(eps, norm)
    check_inputs(inputs, labels)
    shape = tuple(inputs.shape[1:])
    sign = keyed_sign(default_ids(inputs, ids), shape, seed=seed, stream=_STREAM)
    size = eps if norm == "linf" else eps / math.prod(shape) ** 0.5
    return (inputs.detach() + size * sign.to(inputs.dtype)).clamp_(0, 1)
