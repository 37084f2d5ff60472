"""An attack by name with its settings, as typed after `--attack`, and how one is run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repsim.attacks.ball import check_ball
from repsim.attacks.fgsm import fgsm
from repsim.attacks.gradient import check_inputs, frozen
from repsim.attacks.noise import noise
from repsim.attacks.pgd import pgd
from repsim.errors import UserError
from repsim.registry import near, resolve

Attack = Callable[..., Tensor]

ATTACKS: dict[str, Attack] = {"fgsm": fgsm, "pgd": pgd, "noise": noise}
CONTROLS = ("noise",)
# What the caller of an attack decides, not the one who names it.
_CALLERS = ("model", "inputs", "labels", "seed", "ids", "mode", "record", "train_mode")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class AttackSpec:
    """An attack, its settings, and the name of the condition that it makes.

    Attributes:
        name: entry of `ATTACKS`, or the user's `module:object`.
        condition: name of its rows in a store and of its column in a table (`as=`).
        params: settings given to the function; eps is always among them if it takes one.
        function: (model, inputs, labels, *, eps, ...) -> attacked inputs.
        is_control: True for noise, which has the size of an attack but no direction.
    """

    name: str
    condition: str
    params: Mapping[str, Any]
    function: Attack = field(compare=False)
    is_control: bool = False

    @property
    def norm(self) -> str:
        """The norm in which the size of its perturbations is given."""
        return str(self.params.get("norm", "linf"))

    @property
    def text(self) -> str:
        """As it could be typed after `--attack`."""
        settings = [f"{key}={_show(value)}" for key, value in self.params.items()]
        given = [] if self.condition == self.name else [f"as={self.condition}"]
        return ",".join([self.name, *settings, *given])

    def to_json(self) -> dict[str, Any]:
        """Everything that decides what the attack does, as plain values."""
        return {
            "name": self.name,
            "condition": self.condition,
            "params": dict(self.params),
            "control": self.is_control,
        }


def _show(value: Any) -> str:
    """A number as people write it: 0.15 and 1, but 8/255; exact when read back."""
    if isinstance(value, float) and float(f"{value:.4g}") == value:
        return f"{value:.4g}"
    if isinstance(value, float) and round(value * 255) / 255 == value:
        return f"{round(value * 255)}/255"
    return str(value)


def parse_number(text: str, *, what: str, eps: float | None = None) -> float:
    """`8/255`, `0.03`, or, where an eps is given, `1.25eps`.

    Raises:
        UserError: not a number of one of these forms.
    """
    value = text.strip()
    scale = 1.0
    if eps is not None and value.endswith("eps"):
        value, scale = value.removesuffix("eps").rstrip("*") or "1", eps
    parts = value.split("/")
    if len(parts) <= 2 and all(_NUMBER.fullmatch(part.strip()) for part in parts):
        bottom = float(parts[1]) if len(parts) == 2 else 1.0
        if bottom != 0:
            return float(parts[0]) / bottom * scale
    raise UserError(f"{what} expects a number such as 8/255 or 0.03; got {text!r}")


def parse_attack(
    text: str, *, eps: float, defaults: Mapping[str, str] | None = None
) -> AttackSpec:
    """`NAME` or `NAME,key=value,...`; `as=` names the condition.

    Args:
        text: for example `pgd` or `pgd,norm=l2,eps=0.5,as=pgd-l2`.
        eps: the data set's linf eps, used unless the text gives one.
        defaults: settings as text, from options such as `--steps`; used by the attacks that
            take them unless `text` gives them.

    Raises:
        UserError: unknown name, setting or value; a norm without an eps of its own.
    """
    name, *settings = [part.strip() for part in text.split(",")]
    function = resolve(name, ATTACKS, kind="attack")
    known, open_ended = _settings_of(function)
    given: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise UserError(f"--attack {text}: expected key=value after the name; got {setting!r}")
        if key != "as" and key not in known and not open_ended:
            takes = ", ".join(sorted(known))
            raise UserError(
                f"--attack {name} takes {takes}; got {key!r}; near: {near(key, known)}"
            )
        given[key] = value
    condition = given.pop("as", name.rpartition(":")[2])
    if condition in ("clean", "adv") or not re.fullmatch(r"[\w.@+-]+", condition):
        raise UserError(
            f"as= expects a name of letters, digits and -_.+ other than clean and adv; got "
            f"{condition!r}"
        )
    taken = {k: v for k, v in (defaults or {}).items() if k in known or open_ended}
    if given.get("norm", "linf") != taken.get("norm", "linf"):
        taken.pop("eps", None)  # an eps of one norm means nothing in another
    given = {**taken, **given}
    params: dict[str, Any] = {}
    norm = given.get("norm", "linf")
    if "eps" in known or open_ended:
        if "eps" in given:
            params["eps"] = parse_number(given.pop("eps"), what="eps")
        else:
            if norm != "linf":
                raise UserError(
                    f"--attack {text}: norm {norm} expects an eps of its own; try "
                    f"{name},norm={norm},eps=0.5"
                )
            params["eps"] = eps
        check_ball(params["eps"], norm)
    for key, value in given.items():
        params[key] = _convert(key, value, known.get(key), params.get("eps"))
    # In one fixed order, so that two spellings of the same attack are equal.
    ordered = {key: params[key] for key in sorted(params, key=lambda k: (k != "eps", k))}
    return AttackSpec(name, condition, ordered, function, name in CONTROLS)


def _settings_of(function: Attack) -> tuple[dict[str, Any], bool]:
    """The settings an attack takes with their defaults, and whether it takes any others."""
    parameters = list(inspect.signature(function).parameters.values())
    settings = {
        p.name: p.default
        for p in parameters[3:]
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in _CALLERS
    }
    return settings, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _convert(key: str, text: str, default: Any, eps: float | None) -> Any:
    """The value in the type of the setting's default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"{key} expects true or false; got {text!r}")
        return text.lower() == "true"
    if isinstance(default, int):
        if not re.fullmatch(r"-?\d+", text):
            raise UserError(f"{key} expects a whole number; got {text!r}")
        return int(text)
    if isinstance(default, float) or default is None:
        return parse_number(text, what=key, eps=eps)
    return text


def noise_control(eps: float, norm: str = "linf") -> AttackSpec:
    """The control for an attack of this size: condition `noise`."""
    params = {"eps": eps} if norm == "linf" else {"eps": eps, "norm": norm}
    return AttackSpec("noise", "noise", params, noise, True)


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
) -> Tensor:
    """The attacked images (batch, c, h, w); the user's own attacks go through here as well.

    An attack is handed those of ids, seed, mode, train_mode and record that its signature has.

    Args:
        spec: what `parse_attack` returned.
        model: pixel model.
        inputs: clean images (batch, c, h, w) in [0, 1].
        labels: int64 (batch,).
        ids: int64 (batch,), keys of the random draws.
        seed: seed of the draws.
        mode: "represent", "evaluate" or "last"; see `repsim.attacks.pgd`.
        train_mode: leave the network in the mode it is in.
        record: filled with what the attack knows of each image: loss, first_success.

    Raises:
        UserError: images outside [0, 1], or an attack that returns something else than images
            of the same shape in [0, 1].
    """
    check_inputs(inputs, labels)
    takes = inspect.signature(spec.function).parameters
    offered = {
        "ids": ids,
        "seed": seed,
        "mode": mode,
        "train_mode": train_mode,
        "record": record,
    }
    handed = {key: value for key, value in offered.items() if key in takes}
    with frozen(model, train_mode=train_mode):
        attacked = spec.function(model, inputs, labels, **spec.params, **handed)
    if spec.name not in ATTACKS:
        _check_plugin(spec.name, attacked, inputs)
    return attacked.detach()


def _check_plugin(name: str, attacked: Any, inputs: Tensor) -> None:
    if not isinstance(attacked, torch.Tensor) or attacked.shape != inputs.shape:
        came = tuple(attacked.shape) if isinstance(attacked, torch.Tensor) else type(attacked)
        raise UserError(
            f"attack {name} is expected to return images of shape {tuple(inputs.shape)}; got {came}"
        )
    if not bool(((attacked >= 0) & (attacked <= 1)).all()):
        raise UserError(f"attack {name} is expected to return images in [0, 1]; clip them to it")
