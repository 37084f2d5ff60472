"""What a study is made of: a preset (TOML), the options given over it, and a user's own networks.

A preset has `about`, `data`, `seeds` and, where they are not the recipes', `model` and `samples`
(training images); the tables `[encoder]` and `[head]` (settings of the two training phases over
every recipe's); a table for each measuring stage (`[evaluate]`, `[compare]`, `[within]`,
`[probe]`); and a `[[network]]` for every kind of network: `name`, `recipe`, and, where they are
needed, `seeds` (at most so many), `eps` (of its training attack), `init` (the network whose encoder
it starts from), `encoder`, `head`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from repsim.errors import UserError
from repsim.registry import near
from repsim.study.toml import check_name, parse, read_toml, table

PRESETS = ("demo", "small", "gpu", "paper")
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Evaluate:
    """Of the stage `evaluate`.

    Attributes:
        attacks: as `repsim evaluate --attack` takes them; the first decides robust accuracy.
        samples: test images, class-balanced.
        batch_size: images at once; changes no number.
    """

    attacks: tuple[str, ...] = ("pgd",)
    samples: int = 1000
    batch_size: int = 256


@dataclass(frozen=True)
class Compare:
    """Of the stages `shared` and `compare`.

    Attributes:
        attack: made on each network (its condition is its `as=` or name), and on the mean
            prediction of all networks in `shared` for the one set that all of them see.
        shared: names of networks; none: one of each scheme, scenario st or at, and seed.
        samples: test images, class-balanced.
        layers: as `--layers` takes them.
        groups: jackknife groups.
        batch_size: images at once, and of a minibatch where the memory decides for one.
        memory: bytes that activations and Gram matrices may take.
    """

    attack: str = "pgd"
    shared: tuple[str, ...] = ()
    samples: int = 500
    layers: str = "blocks"
    groups: int = 10
    batch_size: int = 256
    memory: int = 4 * 2**30


@dataclass(frozen=True)
class Within:
    """Of the stage `within`: CKA within classes, of the first `samples` images of the draw."""

    samples: int = 500


@dataclass(frozen=True)
class Probe:
    """Of the stage `probe`; see `repsim.probe.probe_live`. Tested on the images of `compare`.

    Attributes:
        solver: of the probes.
        train: images of the training split, class-balanced.
        train_on: conditions that probes are trained on.
        adaptive: also attack each probe itself.
        layers: as `--layers` takes them.
        options: further ones of the solver.
    """

    solver: str = "ridge"
    train: int = 2000
    train_on: tuple[str, ...] = ("clean",)
    adaptive: bool = False
    layers: str = "blocks"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A `[[network]]` of a preset: the same training for several seeds.

    Attributes:
        name: `NAME-SEED` are its networks.
        recipe: of `repsim train --recipe`; none: the architecture without training.
        seeds: at most so many; 0 for as many as the study has.
        eps: of the training attack, as text; the data set's by default.
        init: the kind whose network of the same seed it starts from.
        encoder, head: settings of the two phases over the recipe's and the preset's.
    """

    name: str
    recipe: str = ""
    seeds: int = 0
    eps: str = ""
    init: str = ""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """All that decides a study's numbers, machine and folder apart.

    Attributes:
        preset: its name.
        about: a line.
        data: the data set.
        model: the architecture of all networks; empty: each recipe's.
        samples: training images; 0: the recipe's.
        seeds: how many.
        precision: "auto", "float32" or "bf16".
        margin: a difference within it is none; see `repsim.findings`.
        encoder, head: settings of the two training phases over every recipe's.
    """

    preset: str
    about: str
    data: str
    seeds: int = 2
    model: str = ""
    samples: int = 0
    precision: str = "auto"
    margin: float = 0.02
    encoder: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Evaluate = field(default_factory=Evaluate)
    compare: Compare = field(default_factory=Compare)
    within: Within = field(default_factory=Within)
    probe: Probe = field(default_factory=Probe)
    kinds: tuple[Kind, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All settings as plain values."""
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """The same from `to_json`."""
        return _settings(dict(content), "study.json")

    @property
    def data_name(self) -> str:
        """The data set's name, where `data` is a folder or an object of the user's too."""
        return Path(self.data.rpartition(":")[2]).name


_TABLES: dict[str, type] = {
    "evaluate": Evaluate, "compare": Compare, "within": Within, "probe": Probe,
}  # fmt: skip


def load_preset(name: str) -> Settings:
    """A preset by its name, or a TOML file of the same form.

    Raises:
        UserError: no such preset, or a file that is not one.
    """
    if name in PRESETS:
        text = files("repsim.study").joinpath("presets", f"{name}.toml").read_text("utf-8")
        return _settings({"preset": name, **parse(text, name)}, f"preset {name}")
    path = Path(name)
    if path.suffix != ".toml":
        raise UserError(
            f"--preset expects one of {', '.join(PRESETS)} or a file NAME.toml; got {name!r}; "
            f"near: {near(name, PRESETS)}"
        )
    content = read_toml(path, "--preset")
    return _settings({"preset": path.stem, **content}, f"--preset {name}")


def override(settings: Settings, texts: Sequence[str]) -> Settings:
    """Settings with `KEY=VALUE` put in, values as TOML has them (a bare word is a text).

    Raises:
        UserError: a key that is no setting, or a value of another type.
    """
    content = settings.to_json()
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise UserError(f"--set expects KEY=VALUE, such as compare.samples=200; got {text!r}")
        *way, last = key.strip().split(".")
        inside: Any = content
        for part in way:
            inside = inside.get(part) if isinstance(inside, dict) else None
        open_ended = way in (["encoder"], ["head"], ["probe", "options"])
        if not isinstance(inside, dict) or (last not in inside and not open_ended):
            known = [k for k in content if k != "kinds"]
            known += [f"{k}.{i}" for k in _TABLES for i in content[k]]
            raise UserError(
                f"--set {text}: there is no setting {key.strip()}; near: {near(key, known)}"
            )
        try:
            read = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            read = value.strip()
        if isinstance(inside.get(last), list) and isinstance(read, str):
            read = [part.strip() for part in read.split(";")]
        inside[last] = read
    return _settings(content, "--set")


def chosen(settings: Settings, schemes: Sequence[str]) -> Settings:
    """Only the networks of these schemes, and the untrained.

    Raises:
        UserError: a scheme that the preset does not have.
    """
    from repsim.train import load_recipe

    have = {
        kind.name: load_recipe(kind.recipe).scheme.partition(",")[0] if kind.recipe else UNTRAINED
        for kind in settings.kinds
    }
    known = sorted(set(have.values()) - {UNTRAINED})
    if missing := [scheme for scheme in schemes if scheme not in known]:
        raise UserError(
            f"--schemes expects some of {', '.join(known)} for preset {settings.preset}; got "
            f"{missing[0]!r}; others go into a TOML of your own (--preset FILE.toml)"
        )
    kept = tuple(k for k in settings.kinds if have[k.name] in (*schemes, UNTRAINED))
    return replace(settings, kinds=kept)


def _settings(content: dict[str, Any], where: str) -> Settings:
    content = dict(content)
    kinds = content.pop("network", content.pop("kinds", []))
    if not isinstance(kinds, list) or not all(isinstance(kind, dict) for kind in kinds):
        raise UserError(f"{where}: expected networks as [[network]] tables")
    tables: dict[str, Any] = {
        name: table(cls, content.pop(name, {}), f"{where}, [{name}]")
        for name, cls in _TABLES.items()
    }
    made = tuple(
        table(Kind, kind, f"{where}, network {kind.get('name', i + 1)}")
        for i, kind in enumerate(kinds)
    )
    names = [kind.name for kind in made]
    for name in names:
        check_name(name, f"{where}, network {name}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{where}: networks expect different names; {twice.pop()} is there twice")
    for kind in made:
        if kind.init and kind.init not in names:
            raise UserError(
                f"{where}, network {kind.name}: init expects the name of another network; got "
                f"{kind.init!r}; near: {near(kind.init, names)}"
            )
    settings = table(Settings, {"about": "", **content, **tables, "kinds": made}, where)
    if settings.seeds < 1:
        raise UserError(f"{where}: seeds expects at least 1; got {settings.seeds}")
    return settings


def layer_patterns(text: str) -> str | list[str]:
    """`blocks`, `leaf`, `all`, or the patterns that a setting `layers` joins by spaces."""
    parts = text.split()
    return parts[0] if len(parts) == 1 else parts


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
