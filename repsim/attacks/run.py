"""One attack of a batch, whoever wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from repsim.attacks.ball import per_image, perturbation_norm
from repsim.attacks.gradient import check_inputs, frozen
from repsim.attacks.spec import AttackSpec
from repsim.attacks.table import ATTACKS
from repsim.errors import UserError


def run_attack(
    spec: AttackSpec,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    ids: Tensor,
    seed: int,
    mode: str = "represent",
    train_mode: bool = False,
    record: dict[str, Tensor] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Tensor:
    """The attacked images (batch, c, h, w), detached; the user's own attacks go through here too.

    An attack is handed those of ids, seed, mode, train_mode, record and tell that its signature
    has. With a surrogate it is made on that network at full strength (an image that has just
    fooled the surrogate fools no other), and nothing is recorded of the network itself.

    Args:
        spec: what `parse_attack` returned, bound to its files where it names any.
        model: pixel model.
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        ids: int64 (batch,), keys of the random draws.
        seed: seed of the draws.
        mode: "represent", "evaluate" or "last"; see `repsim.attacks.pgd`.
        train_mode: leave the network in the mode it is in.
        record: filled with what the attack knows of each image: loss, first_success.
        tell: called with a line now and then by attacks that take minutes.

    Raises:
        UserError: images outside [0, 1], files that were not read, or an attack that returns
            something else than images of the same shape in [0, 1].
    """
    if set(spec.files) - set(spec.origin):
        raise UserError(
            f"attack {spec.condition} names files that were not read: call "
            "repsim.attack_files.bind(spec, loaded) first"
        )
    with _running_in(spec.precision, inputs.device.type):
        attacked = _run(
            spec, model, inputs, labels, ids=ids, seed=seed, mode=mode, train_mode=train_mode,
            record=record, tell=tell,
        )  # fmt: skip
    return only_fooled(model, inputs, attacked, labels) if spec.only_fooled else attacked


def _running_in(precision: str | None, device: str) -> AbstractContextManager[None]:
    """As the attack asks for; as the caller runs where it asks for nothing."""
    if precision is None:
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def _run(
    spec: AttackSpec,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    ids: Tensor,
    seed: int,
    mode: str,
    train_mode: bool,
    record: dict[str, Tensor] | None,
    tell: Callable[[str], None] | None,
) -> Tensor:
    bound = dict(spec.bound)
    if (surrogate := bound.pop("surrogate", None)) is not None:
        model, mode, train_mode, record = surrogate, "represent", False, None
    takes = inspect.signature(spec.function).parameters
    offered = {
        "ids": ids,
        "seed": seed,
        "mode": mode,
        "train_mode": train_mode,
        "record": record,
        "tell": tell,
        **bound,
    }
    handed = {key: value for key, value in offered.items() if key in takes}
    if spec.name in ATTACKS:
        return spec.function(model, inputs, labels, **spec.params, **handed)
    return _plugin(spec, model, inputs, labels, handed, train_mode)


def inside(spec: AttackSpec, inputs: Tensor, attacked: Tensor) -> Tensor:
    """The attacked images, and the clean one in place of those beyond the attack's eps.

    Attacks of the smallest norm at full strength return what they found, however far it is; for a
    verdict at an eps that is no success. A user's own attack means by its eps what it likes.
    """
    eps = spec.params.get("eps")
    if spec.name not in ATTACKS or eps is None:
        return attacked
    near = perturbation_norm(attacked - inputs, spec.norm) <= eps * (1 + 1e-4) + 1e-6
    return torch.where(per_image(near, inputs), attacked, inputs)


def only_fooled(model: nn.Module, inputs: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
    """The attacked images that are misclassified, and the clean image in place of the others.

    Args:
        model: pixel model -> logits.
        inputs: clean images (batch, c, h, w).
        attacked: what an attack made of them.
        labels: int64 (batch,).
    """
    with frozen(model), torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        fooled = model(attacked).argmax(1) != labels
    return torch.where(per_image(fooled, inputs), attacked, inputs)


def _plugin(
    spec: AttackSpec, model: nn.Module, inputs: Tensor, labels: Tensor, handed: dict[str, Any],
    train_mode: bool,
) -> Tensor:  # fmt: skip
    check_inputs(inputs, labels)
    # A copy: a user's attack may well work in place, and the caller still needs the clean images.
    copy = inputs.detach().clone()
    try:
        with frozen(model, train_mode=train_mode), torch.enable_grad():
            attacked = spec.function(model, copy, labels, **spec.params, **handed)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"attack {spec.name} failed with {type(error).__name__}: {error}; --debug shows where"
        ) from error
    _check_plugin(spec.name, attacked, inputs)
    return attacked.detach().to(inputs)


def _check_plugin(name: str, attacked: Any, inputs: Tensor) -> None:
    if not isinstance(attacked, torch.Tensor) or attacked.shape != inputs.shape:
        came = tuple(attacked.shape) if isinstance(attacked, torch.Tensor) else type(attacked)
        raise UserError(
            f"attack {name} is expected to return images of shape {tuple(inputs.shape)}; got {came}"
        )
    if not bool(((attacked >= 0) & (attacked <= 1)).all()):
        raise UserError(f"attack {name} is expected to return images in [0, 1]; clip them to it")
