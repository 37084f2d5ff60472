"""An attack by name with its settings, as typed after `--attack`, and how one is run."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repsim.attacks.ball import NORMS, check_ball
from repsim.attacks.fgsm import fgsm
from repsim.attacks.gradient import check_inputs, frozen
from repsim.attacks.noise import noise
from repsim.attacks.pgd import check_settings, pgd
from repsim.errors import UserError
from repsim.registry import near, resolve

Attack = Callable[..., Tensor]

ATTACKS: dict[str, Attack] = {"fgsm": fgsm, "pgd": pgd, "noise": noise}
CONTROLS = ("noise",)
# What else would be found too late, when the attack runs.
_CHECKS: dict[str, Callable[..., None]] = {"pgd": check_settings}
# These mean something else where conditions are named.
_RESERVED = ("clean", "adv", "worst")
_PLAIN = (bool, int, float, str, type(None))
_ANY = inspect.Parameter.empty  # a setting without a default: of any type
# What the caller of an attack decides, not the one who names it.
_CALLERS = ("model", "inputs", "labels", "seed", "ids", "mode", "record", "train_mode")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class AttackSpec:
    """An attack, its settings, and the name of the condition that it makes.

    Attributes:
        name: entry of `ATTACKS`, or the user's `module:object`.
        condition: name of its rows in a store and of its column in a table (`as=`).
        params: every setting of the function, given or by default, so that two spellings of
            one attack are equal and a record of it outlives a change of defaults.
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
        """As it could be typed after `--attack`: eps and what differs from the defaults."""
        defaults, _ = _settings_of(self.function, self.name)
        settings = [
            f"{key}={_show(value)}"
            for key, value in self.params.items()
            if key == "eps" or key not in defaults or value != defaults[key]
        ]
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
    """The shortest text that `parse_number` reads back as the same value."""
    if not isinstance(value, float):
        return str(value)
    over = round(value * 255)
    short = f"{value:g}"
    if float(short) == value:
        return short
    return f"{over}/255" if over / 255 == value else repr(value)


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
        if bottom != 0 and math.isfinite(number := float(parts[0]) / bottom * scale):
            return number
    raise UserError(f"{what} expects a number such as 8/255 or 0.03; got {text!r}")


def parse_attack(text: str, *, eps: float, defaults: Mapping[str, str] | None = None) -> AttackSpec:
    """`NAME` or `NAME,key=value,...`; `as=` names the condition.

    Args:
        text: for example `pgd` or `pgd,norm=l2,eps=0.5,as=pgd-l2`.
        eps: the data set's linf eps, used unless the text gives one. (A plug-in whose own
            default is another norm keeps its own default eps.)
        defaults: settings as text, from options such as `--steps`; used by the attacks that
            take them unless `text` gives them.

    Raises:
        UserError: unknown name, setting or value; a norm without an eps of its own.
    """
    name, *settings = [part.strip() for part in text.split(",")]
    function = resolve(name, ATTACKS, kind="attack")
    known, open_ended = _settings_of(function, name)
    given = _read_settings(name, settings, None if open_ended else known)
    condition = _condition(given.pop("as", name.rpartition(":")[2]), name in CONTROLS)

    taken = {k: v for k, v in (defaults or {}).items() if k in known or open_ended}
    own_norm = known["norm"] if isinstance(known.get("norm"), str) else "linf"
    norm = given.get("norm", taken.get("norm", own_norm))
    if norm != taken.get("norm", own_norm):
        taken.pop("eps", None)  # an eps of one norm means nothing in another
    given = {**taken, **given}

    params: dict[str, Any] = {k: v for k, v in known.items() if isinstance(v, _PLAIN)}
    if "eps" in known or open_ended:
        asked = given.pop("eps", None)
        own_eps = norm == own_norm != "linf" and isinstance(known.get("eps"), float)
        if asked is not None:
            params["eps"] = parse_number(asked, what="eps")
        elif not own_eps:
            params["eps"] = eps
        if name in ATTACKS or norm in NORMS:  # a plug-in may have norms of its own
            check_ball(params["eps"], norm)
        if asked is None and norm != "linf" and not own_eps:
            raise UserError(
                f"--attack {text}: norm {norm} expects an eps of its own; try "
                f"{name},norm={norm},eps=0.5"
            )
    for key, value in given.items():
        params[key] = _convert(key, value, known.get(key, _ANY), params.get("eps"))
    if lacking := [key for key, value in known.items() if value is _ANY and key not in params]:
        raise UserError(
            f"--attack {text}: {name} also expects {', '.join(lacking)}; add ,KEY=VALUE"
        )
    if name in _CHECKS:
        _CHECKS[name](**params)
    ordered = {key: params[key] for key in sorted(params, key=lambda k: (k != "eps", k))}
    return AttackSpec(name, condition, ordered, function, name in CONTROLS)


def _read_settings(
    name: str, settings: Sequence[str], known: Mapping[str, Any] | None
) -> dict[str, str]:
    """`key=value` each -> texts by key; any key where none are known."""
    given: dict[str, str] = {}
    for setting in settings:
        key, _, value = (part.strip() for part in setting.partition("="))
        if not key or not value:
            raise UserError(f"--attack {name}: expected key=value after the name; got {setting!r}")
        if key in given:
            raise UserError(f"--attack {name}: expected {key} once; got it twice")
        if key != "as" and known is not None and key not in known:
            takes = ", ".join(sorted(known)) or "no settings"
            raise UserError(f"--attack {name} takes {takes}; got {key!r}; near: {near(key, known)}")
        given[key] = value
    return given


def _condition(text: str, is_control: bool) -> str:
    reserved = _RESERVED if is_control else (*_RESERVED, *CONTROLS)
    if text in reserved or not re.fullmatch(r"\w[\w.@+-]*", text):
        raise UserError(
            f"as= expects a name of letters, digits and _-.+@ other than {', '.join(reserved)}; "
            f"got {text!r}"
        )
    return text


def _settings_of(function: Attack, name: str) -> tuple[dict[str, Any], bool]:
    """The settings an attack takes with their defaults, and whether it takes any others."""
    try:
        signature = inspect.signature(function)
        signature.bind_partial(None, None, None)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--attack {name}: expected a function (model, inputs, labels, ...) -> attacked "
            f"inputs; got {function!r}: {error}"
        ) from error
    parameters = list(signature.parameters.values())
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
    if isinstance(default, str):
        return text
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        return parse_number(text, what=key, eps=eps)
    except UserError:
        return text


def noise_control(eps: float, norm: str = "linf") -> AttackSpec:
    """The control for an attack of this size: condition `noise`."""
    return parse_attack(f"noise,norm={norm},eps={eps!r}", eps=eps)


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
    """The attacked images (batch, c, h, w), detached; the user's own attacks go through here too.

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
    takes = inspect.signature(spec.function).parameters
    offered = {
        "ids": ids,
        "seed": seed,
        "mode": mode,
        "train_mode": train_mode,
        "record": record,
    }
    handed = {key: value for key, value in offered.items() if key in takes}
    if spec.name in ATTACKS:
        return spec.function(model, inputs, labels, **spec.params, **handed)
    check_inputs(inputs, labels)
    # A copy: a user's attack may well work in place, and the caller still needs the clean images.
    with frozen(model, train_mode=train_mode), torch.enable_grad():
        attacked = spec.function(model, inputs.detach().clone(), labels, **spec.params, **handed)
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
