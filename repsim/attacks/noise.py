"""Random perturbations of the attack's size: the control of every finding about attacks."""

from __future__ import annotations

from torch import Tensor, nn

from repsim.attacks.ball import check_ball, per_image, perturbation_norm, project
from repsim.attacks.gradient import check_inputs, default_ids
from repsim.errors import UserError
from repsim.keyed import keyed_normal, keyed_sign, keyed_uniform

# Keeps the control's draws apart from the random starts of the attacks (streams 0, 1, 2, ...).
_STREAM = 1 << 32
KINDS = ("sign", "uniform")


def noise(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    kind: str = "sign",
    seed: int = 0,
    ids: Tensor | None = None,
) -> Tensor:
    """eps · random sign, clipped to [0, 1]: as large as the attack, in no direction.

    For l2 and l1 the signs are scaled to norm eps (before clipping). With kind "uniform" the
    perturbation is drawn uniformly from the ball instead (for l2 and l1 in a normal direction),
    and scaled so that its norm is eps exactly: the size is the attack's, the pixels differ.

    Args:
        model: not used; it is an argument because every attack takes it.
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,), not used.
        eps: size in pixel units.
        norm: "linf", "l2" or "l1".
        kind: "sign" or "uniform".
        seed: seed of the draws, which are keyed by (seed, id).
        ids: int64 (batch,) keys; the position in the batch by default.

    Returns:
        Noisy images, like inputs.

    Raises:
        UserError: images outside [0, 1]; an eps, norm or kind that cannot be meant.
    """
    check_ball(eps, norm)
    if kind not in KINDS:
        raise UserError(f"kind expects one of {', '.join(KINDS)}; got {kind!r}")
    check_inputs(inputs, labels)
    inputs, ids = inputs.detach(), default_ids(inputs, ids)
    shape = tuple(inputs.shape[1:])
    if kind == "uniform" and norm == "linf":
        delta = keyed_uniform(ids, shape, seed=seed, stream=_STREAM + 1) * 2 - 1
    elif kind == "uniform":
        delta = keyed_normal(ids, shape, seed=seed, stream=_STREAM + 1)
    else:
        delta = keyed_sign(ids, shape, seed=seed, stream=_STREAM)
    size = per_image(perturbation_norm(delta, norm), delta)
    noisy = (inputs + eps * (delta / size).to(inputs.dtype)).clamp_(0, 1)
    # In 16 bits rounding may have taken it out of the ball.
    return project(noisy, inputs, eps, norm) if inputs.element_size() < 4 else noisy
