"""The momentum iterative method (Dong et al. 2018, arXiv 1710.06081, algorithm 1)."""

from __future__ import annotations

from torch import Tensor, nn

from repsim.attacks.ascend import ascend, check_settings
from repsim.attacks.gradient import check_inputs, frozen
from repsim.attacks.pgd import objective_of
from repsim.errors import UserError


def mim(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    restarts: int = 1,
    start: str = "clean",
    loss: str = "ce",
    eot: int = 1,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """g ← decay·g + ∇/‖∇‖₁; x ← Π(x + step_size · direction(g)), equations 6 and 7.

    The momentum carries the attack past small bumps of the loss, which makes its images fool
    other networks more often than those of `pgd`: use it with `surrogate=`.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> logits (batch, classes).
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        eps: radius in pixel units.
        norm: "linf", "l2" or "l1"; the paper has linf (and l2 in its section 3.4).
        steps: gradient steps of each restart.
        step_size: in pixel units; eps / steps by default, as in the paper.
        decay: μ of the paper; 0 is the iterative method without momentum.
        restarts, start, loss, eot, mode, seed, ids, train_mode, record: as in `repsim.attacks.pgd`.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: as `repsim.attacks.pgd` does, or a decay that is negative.
    """
    check_settings(
        eps=eps, norm=norm, steps=steps, step_size=step_size, restarts=restarts, start=start,
        eot=eot,
    )  # fmt: skip
    if loss == "kl" and start == "clean":
        raise UserError("loss kl expects start='random': its gradient is 0 at the clean image")
    if not 0 <= decay < float("inf"):
        raise UserError(f"decay expects a number of at least 0; got {decay!r}")
    check_inputs(inputs, labels)
    with frozen(model, train_mode=train_mode, like=inputs) as net:
        return ascend(
            objective_of(loss, net, inputs, labels), inputs, eps=eps, norm=norm, steps=steps,
            step_size=eps / steps if step_size is None else step_size, restarts=restarts,
            start=start, momentum=decay, eot=eot, mode=mode, seed=seed, ids=ids, record=record,
        )  # fmt: skip
