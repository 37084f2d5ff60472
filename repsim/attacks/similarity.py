"""The attack on the similarity measure itself: the lowest CKA between clean and attacked images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repsim.attacks.activation import activations, unattainable
from repsim.attacks.ascend import ascend, check_settings
from repsim.attacks.gradient import check_inputs
from repsim.errors import UserError


def cka_attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor | None = None,
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    start: str = "random",
    layer: str | None = None,
    mode: str = "represent",
    seed: int = 0,
    ids: Tensor | None = None,
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """min over ‖δ‖ <= eps of CKA(φ(x), φ(x + δ)), φ a layer's activations of the whole batch.

    CKA is the linear one with debiased HSIC (Song et al. 2012; see `debiased_cka`), whose value
    does not depend on the number of images. How low can the similarity be pushed at this size?
    The control for every reading of CKA(clean, adv).

    CKA is a number of a batch and not of an image, so **the result depends on the batch**.

    Args:
        model: pixel model, (batch, c, h, w) in [0, 1] -> anything.
        inputs: clean images (batch, c, h, w) in [0, 1], at least 4 (or none).
        labels: not used.
        eps, norm, steps, step_size, restarts: see `repsim.attacks.pgd`.
        start: "random"; at the clean images CKA is at its maximum and has no gradient.
        layer: a name that `repsim layers` lists; the pooled features, which the network's head
            takes, by default.
        mode: as in `pgd`; nothing is ever reached, so "evaluate" gives the last iterate.
        seed, ids: of the random starts.
        train_mode: leave the network in the mode it is in instead of eval mode.
        record: filled with `loss` (batch,), -CKA, the same for all images, and `first_success`,
            all -1.

    Returns:
        The attacked images, like inputs.

    Raises:
        UserError: fewer than 4 images; images outside [0, 1]; no such layer, or one that is the
            same for all images; a setting that cannot be meant; a loss or gradient that is not
            finite.
    """
    check_settings(
        eps=eps, norm=norm, steps=steps, step_size=step_size, restarts=restarts, start=start
    )
    if start == "clean":
        raise UserError("cka_attack expects start=random: at the clean images CKA has no gradient")
    check_inputs(inputs, labels)
    inputs = inputs.detach()
    if 0 < len(inputs) < 4:
        raise UserError(
            f"cka_attack expects at least 4 images in a batch, for the debiased HSIC; got "
            f"{len(inputs)}; try another --batch-size"
        )
    if len(inputs) == 0:
        if record is not None:
            record.update(loss=torch.empty(0), first_success=torch.empty(0, dtype=torch.int64))
        return inputs.clone()
    with activations(model, inputs, layer, train_mode=train_mode) as read:
        with torch.no_grad():
            clean = centred_gram(read(inputs))
        if not bool((clean != 0).any()):
            raise UserError(
                "cka_attack expects a layer that varies over the images; its activations are all "
                "the same; try another layer"
            )

        def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            found = aligned(clean[rows][:, rows], centred_gram(read(x)))
            return -found.expand(len(x)), unattainable(x)

        return ascend(
            objective, inputs, eps=eps, norm=norm, steps=steps, step_size=step_size,
            restarts=restarts, start=start, mode=mode, seed=seed, ids=ids, record=record,
        )  # fmt: skip


def debiased_cka(first: Tensor, second: Tensor) -> Tensor:
    """HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)), linear kernels, debiased HSIC; differentiable.

    Args:
        first: (samples, features...), at least 4 samples.
        second: (samples, other features...).

    Returns:
        A float64 scalar.
    """
    return aligned(centred_gram(first), centred_gram(second))


def aligned(one: Tensor, other: Tensor) -> Tensor:
    """The cosine between two U-centred Gram matrices (n, n): their CKA.

    The factor 1/(n(n - 3)) that makes ⟨Ã, B̃⟩ the HSIC cancels.
    """
    return (one * other).sum() / (torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other))


def centred_gram(activation: Tensor) -> Tensor:
    """U-centred linear Gram matrix (n, n) float64 of activations (n, ...).

    ã_ij = a_ij - r_i/(n-2) - r_j/(n-2) + t/((n-1)(n-2)) off the diagonal, which is 0; r are the row
    sums and t the sum of a without its diagonal (Székely and Rizzo 2014).
    """
    features = activation.flatten(1).double()
    # It changes nothing but roundings: U-centring takes a common shift away.
    features = features - features.mean(0)
    count = len(features)
    itself = torch.eye(count, dtype=torch.bool, device=features.device)
    gram = (features @ features.T).masked_fill(itself, 0)
    rows = gram.sum(1) / (count - 2)
    centred = gram - rows[:, None] - rows + gram.sum() / ((count - 1) * (count - 2))
    return centred.masked_fill(itself, 0)
