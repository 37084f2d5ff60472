"""An attack by name with its settings, as typed after `--attack`, and how one is run."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repsim.attacks.ascend import check_settings
from repsim.attacks.autoattack import stages
from repsim.attacks.ball import NORMS, check_ball
from repsim.attacks.feature import DISTANCES
from repsim.attacks.instance import INSTANCE_LOSSES
from repsim.attacks.noise import KINDS
from repsim.attacks.pgd import LOSS_NAMES
from repsim.attacks.table import (
    ATTACKS,
    CONTROLS,
    GROUPS,
    MINIMUM_NORM,
    PRESETS,
    UNSEEN,
    Attack,
)
from repsim.errors import UserError
from repsim.registry import near, resolve, source_sha256

# These mean something else where conditions are named.
_RESERVED = ("clean", "adv", "worst")
_PLAIN = (bool, int, float, str, type(None))
_ANY = inspect.Parameter.empty  # a setting without a default: of any type
# What the caller of an attack decides, not the one who names it.
_CALLERS = (
    "model", "inputs", "labels", "seed", "ids", "mode", "record", "train_mode", "tell",
    "weight", "bias", "projector", "guides", "positives", "pairs",
)  # fmt: skip
PRECISIONS = ("float32", "bf16")
# What any attack takes beside its own settings.
_COMMON = ("as", "only_fooled", "precision")
# Names, though their default is None.
_TEXT = ("layer",)
# Settings that name a file: any attack may be made on another network; a probe has weights.
_FILES = ("surrogate", "weights")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


# The values of settings that are words.
_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "pgd": {"loss": LOSS_NAMES},
    "mim": {"loss": LOSS_NAMES},
    "apgd": {"loss": (*LOSS_NAMES, "dlr-targeted")},
    "instance": {"loss": INSTANCE_LOSSES},
    "noise": {"kind": KINDS},
    "feature": {"distance": DISTANCES, "towards": ("away", "other")},
}


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
        only_fooled: images that it does not fool come back clean (`only_fooled=true`).
        precision: of its forwards and backwards, "float32" or "bf16" (`precision=bf16`); None is
            whatever the caller runs in. Verdicts are in float32 all the same.
        files: paths of the files that it needs, by setting: `surrogate`, `weights`.
        origin: what those files were, for the record; see `repsim.attack_files.bind`.
        bound: what was read from them.
        fixed: its images were made beforehand; no network that it is run on changes them.
    """

    name: str
    condition: str
    params: Mapping[str, Any]
    function: Attack = field(compare=False)
    is_control: bool = False
    only_fooled: bool = False
    precision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)
    bound: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    fixed: bool = False

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
            if key not in defaults or value != defaults[key] or (key == "eps" and value is not None)
        ]
        settings += ["only_fooled=true"] if self.only_fooled else []
        settings += [f"precision={self.precision}"] if self.precision else []
        settings += [f"{key}={path}" for key, path in self.files.items()]
        given = [] if self.condition == self.name else [f"as={self.condition}"]
        return ",".join([self.name, *settings, *given])

    def to_json(self) -> dict[str, Any]:
        """Everything that decides what the attack does, as plain values.

        Of the user's own, `source`: the hash of the file that it is in.
        """
        source = source_sha256(self.name)
        return {
            "name": self.name,
            "condition": self.condition,
            "params": dict(self.params),
            "control": self.is_control,
            **({"only_fooled": True} if self.only_fooled else {}),
            **({"precision": self.precision} if self.precision else {}),
            **({"source": source} if source else {}),
            **self.origin,
        }


def _show(value: Any) -> str:
    """The shortest text that `parse_number` reads back as the same value."""
    if not isinstance(value, float):
        return "none" if value is None else str(value)
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


def parse_attacks(
    text: str, *, eps: float, defaults: Mapping[str, str] | None = None
) -> list[AttackSpec]:
    """As `parse_attack`; the name of a group (`unseen`) stands for all of its attacks."""
    name, comma, settings = text.partition(",")
    if name.strip() not in GROUPS:
        return [parse_attack(text, eps=eps, defaults=defaults)]
    members = GROUPS[name.strip()]
    if re.search(r"\bas\s*=", settings):
        raise UserError(f"--attack {text}: as= expects one attack; {name.strip()} is several")
    return [parse_attack(m + comma + settings, eps=eps, defaults=defaults) for m in members]


def parse_attack(text: str, *, eps: float, defaults: Mapping[str, str] | None = None) -> AttackSpec:
    """`NAME` or `NAME,key=value,...`; `as=` names the condition.

    Args:
        text: for example `pgd` or `pgd,norm=l2,eps=0.5,as=pgd-l2`.
        eps: the data set's linf eps, used unless the text gives one. (An attack whose own
            default is another norm keeps its own default eps, which may be none at all.)
        defaults: settings as text, from options such as `--steps`; used by the attacks that
            take them unless `text` gives them.

    Raises:
        UserError: unknown name, setting or value; a norm without an eps of its own.
    """
    name, *settings = [part.strip() for part in text.split(",")]
    short, preset = name, dict[str, str]()
    if name in PRESETS:
        name, *own = PRESETS[name].split(",")
        preset = dict(setting.split("=") for setting in own)
    function = resolve(name, ATTACKS, kind="attack", also=[*PRESETS, *GROUPS])
    known, open_ended = _settings_of(function, name)
    given = _read_settings(name, settings, None if open_ended else known)
    if short in UNSEEN and (fixed := {"eps", "norm"} & set(given)):
        raise UserError(
            f"--attack {text}: {short} has its own eps and norm; got {', '.join(sorted(fixed))}; "
            f"try {name},norm=...,eps=..."
        )
    given = preset | given
    condition = _condition(given.pop("as", short.rpartition(":")[2]), name in CONTROLS)
    only_fooled = "only_fooled" not in known and _convert(
        "only_fooled", given.pop("only_fooled", "false"), False, None
    )
    precision = None if "precision" in known else given.pop("precision", None)
    if precision not in (None, *PRECISIONS):
        raise UserError(f"precision expects one of {', '.join(PRECISIONS)}; got {precision!r}")
    files = {key: given.pop(key) for key in _FILES if key in given and key not in known}
    if name == "probe" and "weights" not in files:
        raise UserError(
            "--attack probe expects the probe's file: probe,layer=NAME,weights=FILE (a checkpoint "
            "of tensors weight (classes, features) and bias (classes,))"
        )

    taken = {k: v for k, v in (defaults or {}).items() if k in known or open_ended}
    own_norm = known["norm"] if isinstance(known.get("norm"), str) else "linf"
    norm = given.get("norm", taken.get("norm", own_norm))
    if norm != (defaults or {}).get("norm", "linf"):
        # A size in one norm means nothing in another.
        taken.pop("eps", None)
        if not taken.get("step_size", "eps").endswith("eps"):
            taken.pop("step_size")
    if name == "cw-l2":  # there they are those of an optimiser
        taken.pop("steps", None)
        taken.pop("step_size", None)
    given = {**taken, **given}

    params: dict[str, Any] = {k: v for k, v in known.items() if isinstance(v, _PLAIN)}
    if "eps" in known or open_ended:
        asked = given.pop("eps", None)
        # An attack of the smallest norm needs no eps.
        free = norm != "linf" and "eps" in known and known["eps"] is None
        own_eps = free or (norm == own_norm != "linf" and isinstance(known.get("eps"), float))
        if asked is not None and asked.lower() == "none" and name in MINIMUM_NORM:
            params["eps"] = None
        elif asked is not None:
            params["eps"] = parse_number(asked, what="eps")
        elif not own_eps:
            params["eps"] = eps
        if (name in ATTACKS or norm in NORMS) and params["eps"] is not None:
            check_ball(params["eps"], norm)  # a plug-in may have norms of its own
        if asked is None and norm != "linf" and not own_eps:
            raise UserError(
                f"--attack {text}: norm {norm} expects an eps of its own; try "
                f"{name},norm={norm},eps={12 if norm == 'l1' else 0.5}"
            )
    for key, value in given.items():
        params[key] = _convert(key, value, known.get(key, _ANY), params.get("eps"))
    if lacking := [key for key, value in known.items() if value is _ANY and key not in params]:
        raise UserError(
            f"--attack {text}: {name} also expects {', '.join(lacking)}; add ,KEY=VALUE"
        )
    if name in ATTACKS:
        _check(name, params)
    ordered = {key: params[key] for key in sorted(params, key=lambda k: (k != "eps", k))}
    return AttackSpec(
        name, condition, ordered, function, name in CONTROLS, only_fooled, precision, files
    )


def _check(name: str, params: Mapping[str, Any]) -> None:
    """What else would be found too late, when the attack runs."""
    if "steps" in params and params.get("eps") is not None:
        check_settings(**{"norm": "linf", **params})
    for key, allowed in _CHOICES.get(name, {}).items():
        if params[key] not in allowed:
            raise UserError(f"{key} expects one of {', '.join(allowed)}; got {params[key]!r}")
    for key in ("queries", "targets", "views", "classes", "binary_search"):
        least = 0 if key == "targets" and name == "fab" else 1
        if key in params and params[key] < least:
            raise UserError(f"{key} expects at least {least}; got {params[key]}")
    for key in ("temperature", "p_init"):
        if key in params and not params[key] > 0:
            raise UserError(f"{key} expects a number above 0; got {params[key]!r}")
    if name == "autoattack":
        stages(params["version"], params["norm"])
    if params.get("loss") == "kl" and params.get("start") == "clean":
        raise UserError(
            f"loss kl expects start=random: its gradient is 0 at the clean image; try "
            f"{name},loss=kl,start=random"
        )
    norms = {"deepfool": ("l2", "linf"), "cw-l2": ("l2",)}.get(name, NORMS)
    if params.get("norm", norms[0]) not in norms:
        raise UserError(f"{name} expects norm {' or '.join(norms)}; got {params['norm']!r}")


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
        if key not in (*_COMMON, *_FILES) and known is not None and key not in known:
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
    if isinstance(default, str) or key in _TEXT:
        return text
    if isinstance(default, float) or default is None:
        return parse_number(text, what=key, eps=eps)
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        return parse_number(text, what=key, eps=eps)
    except UserError:
        return text


def noise_control(eps: float, norm: str = "linf") -> AttackSpec:
    """The control for an attack of this size: condition `noise`."""
    return parse_attack(f"noise,norm={norm},eps={eps!r}", eps=eps)
