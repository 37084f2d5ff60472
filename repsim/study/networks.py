"""The networks of a study: of a preset's kinds and seeds, or a user's own from a TOML file.

    [[network]]
    name = "mine-at"             # how tables and figures call it
    checkpoint = "runs/at.pt"    # relative to the TOML file
    scheme = "sl"
    scenario = "at"
    seed = 0                     # another number for another training of the same recipe
    eps = "8/255"                # of its training attack; the checkpoint's own where it is known

Foreign weights also have `arch` and, where the network expects them, `mean` and `std`. The study is
of these networks and an untrained one; with `preset = true` at the top, of the preset's as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from repsim.attacks.spec import parse_number
from repsim.checkpoint import read_plain
from repsim.data import default_eps
from repsim.errors import UserError
from repsim.registry import near
from repsim.study.settings import UNTRAINED, Kind, Settings
from repsim.study.toml import read_toml, table
from repsim.train import SCENARIOS, Plan, give_way, load_recipe, plan


@dataclass(frozen=True)
class StudyNetwork:
    """One network of a study.

    Attributes:
        name: as in every table; its checkpoint is `checkpoints/NAME.pt`.
        scheme: "sl", "scl", "cl", ...; "untrained".
        scenario: "st", "at", "partial-at", "full-at" or "untrained".
        seed: of its training.
        eps: linf size of its training attack in units of pixels in [0, 1]; None for none.
        kind: what it is trained by; None for a user's own.
        init: name of the network whose encoder it starts from; "" for none.
        arch: architecture; "" where the checkpoint says it.
        checkpoint: a user's own file, relative to the study's folder; "" for one that is trained.
        mean, std: normalisation of foreign weights.
    """

    name: str
    scheme: str
    scenario: str
    seed: int = 0
    eps: float | None = None
    kind: Kind | None = None
    init: str = ""
    arch: str = ""
    checkpoint: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def file(self) -> str:
        """Its checkpoint in the study's folder."""
        return f"checkpoints/{self.name}.pt"

    def to_json(self) -> dict[str, Any]:
        """All as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> StudyNetwork:
        """The same from `to_json`; further entries are left out."""
        known = {key: content[key] for key in (f.name for f in fields(cls)) if key in content}
        kind = known.get("kind")
        known["kind"] = None if kind is None else table(Kind, kind, "study.json")
        known |= {key: tuple(known[key]) for key in ("mean", "std") if key in known}
        return cls(**known)


@dataclass(frozen=True)
class _Own:
    """A `[[network]]` of a user's TOML file."""

    name: str
    checkpoint: str
    scheme: str
    scenario: str
    seed: int = 0
    eps: str = ""
    arch: str = ""
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)


def preset_networks(settings: Settings) -> list[StudyNetwork]:
    """Every kind × seed, in the order of seeds within kinds; a network comes after its `init`.

    Raises:
        UserError: a kind without an architecture, or settings of a training that cannot be meant.
    """
    found: list[StudyNetwork] = []
    models = [settings.model] if settings.model else []
    models += [load_recipe(kind.recipe).model for kind in settings.kinds if kind.recipe]
    for kind in settings.kinds:
        count = min(settings.seeds, kind.seeds or settings.seeds)
        for seed in range(count):
            name = f"{kind.name}-{seed}"
            if not kind.recipe:
                if not models:
                    raise UserError(
                        f"network {kind.name} has no recipe and the study no model; add model = "
                        '"resnet18" or leave the network away'
                    )
                found.append(
                    StudyNetwork(name, UNTRAINED, UNTRAINED, seed, kind=kind, arch=models[0])
                )
                continue
            recipe = load_recipe(kind.recipe)
            one = StudyNetwork(
                name, recipe.scheme.partition(",")[0], recipe.scenario, seed, kind=kind,
                init=f"{kind.init}-{seed}" if kind.init else "",
                arch=settings.model or recipe.model,
            )  # fmt: skip
            attack = training_plan(one, settings).phases[0].attack
            eps = None if attack is None else float(attack.params["eps"])
            found.append(StudyNetwork.from_json({**one.to_json(), "eps": eps}))
    names = [one.name for one in found]
    for i, one in enumerate(found):
        if one.init and one.init not in names[:i]:
            raise UserError(
                f"network {one.name} starts from {one.init}, which is expected before it with as "
                "many seeds"
            )
    if not found:
        raise UserError(
            f"preset {settings.preset}: expected at least one [[network]]; there is none"
        )
    return found


def training_plan(network: StudyNetwork, settings: Settings) -> Plan:
    """The phases of a network's training: the recipe, under the study's and its kind's settings.

    Raises:
        UserError: settings that cannot be meant.
    """
    kind = network.kind
    assert kind is not None
    recipe = load_recipe(kind.recipe)
    attack_options = {"eps": kind.eps} if kind.eps else {}
    phases = []
    for ours, theirs, last in (
        (recipe.encoder, settings.encoder, kind.encoder),
        (recipe.head, settings.head, kind.head),
    ):
        merged = {**ours, **theirs, **last}
        if recipe.scenario == "st":
            merged.pop("attack", None)
        elif "attack" in merged:
            merged["attack"] = give_way(merged["attack"], attack_options)
        if "milestones" in merged:
            merged["milestones"] = tuple(merged["milestones"])
        phases.append(merged)
    encoder, head = phases
    known = plan(settings.data, recipe.scheme, recipe.scenario, protocol=recipe.protocol)
    if len(known.phases) == 1:
        head = {}
    elif "attack" in head and known.phases[1].attack is None:
        head.pop("attack")
    try:
        return plan(
            settings.data, recipe.scheme, recipe.scenario, protocol=recipe.protocol,
            phases="head" if network.init else "both", head=head, projector=recipe.projector,
            seed=network.seed, attack_defaults=attack_options,
            **({} if network.init else encoder),
        )  # fmt: skip
    except TypeError as error:  # a setting that no phase has
        raise UserError(f"network {network.name}: {error}") from error


def own_networks(path: Path, folder: Path, settings: Settings) -> tuple[list[StudyNetwork], bool]:
    """The networks of a user's TOML file, and whether the preset's are wanted as well.

    Args:
        path: the file.
        folder: of the study; checkpoints are found from there.
        settings: of the study.

    Raises:
        UserError: a mistake in the file, or a checkpoint that is not there or cannot be read.
    """
    content = read_toml(path, "--models")
    also = content.pop("preset", False)
    rows = content.pop("network", None)
    if content or not isinstance(also, bool) or not isinstance(rows, list) or not rows:
        came = ", ".join(content) or "none"
        raise UserError(
            f"{path}: expected [[network]] tables of name, checkpoint, scheme, scenario, and "
            f"nothing else but preset = true; got {came}"
        )
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{path}, network {row.get('name', number) if isinstance(row, dict) else number}"
        found.append(_own(table(_Own, row, where), path, folder, settings, where))
    _distinct([one.name for one in found], str(path))
    if not also:
        arch = next(one.arch for one in found)
        kind = Kind(UNTRAINED, seeds=1)
        found.append(StudyNetwork(f"{UNTRAINED}-0", UNTRAINED, UNTRAINED, 0, kind=kind, arch=arch))
    return found, also


def _own(row: _Own, path: Path, folder: Path, settings: Settings, where: str) -> StudyNetwork:
    if not re.fullmatch(r"\w[\w.+-]*", row.name):
        raise UserError(f"{where}: name expects letters, digits and _-.+; got {row.name!r}")
    if row.scenario not in SCENARIOS:
        raise UserError(
            f"{where}: scenario expects one of {', '.join(SCENARIOS)}; got {row.scenario!r}; near: "
            f"{near(row.scenario, SCENARIOS)}"
        )
    file = path.parent / Path(row.checkpoint).expanduser()
    if not file.is_file():
        raise UserError(f"{where}: checkpoint expects a file; there is no file {file}")
    content = read_plain(file)
    known = content if isinstance(content, dict) and "arch" in content else {}
    if not known and not row.arch:
        raise UserError(
            f"{where}: {row.checkpoint} is not of repsim train; add its arch, such as "
            'arch = "resnet18"'
        )
    attack = known.get("attack") or {}
    eps = attack.get("params", {}).get("eps")
    if row.eps:
        eps = parse_number(row.eps, what=f"{where}: eps")
    elif row.scenario == "st":
        eps = None
    elif eps is None:
        raise UserError(
            f"{where}: {row.scenario} expects eps, the size of its training attack, such as "
            f'eps = "{round(default_eps(settings.data) * 255)}/255"'
        )
    return StudyNetwork(
        row.name, row.scheme, row.scenario, row.seed, eps, arch=str(known.get("arch", row.arch)),
        checkpoint=_from(folder, file), mean=tuple(row.mean), std=tuple(row.std),
    )  # fmt: skip


def _from(folder: Path, file: Path) -> str:
    """A file's path as seen from a folder."""
    import os

    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def _distinct(names: Sequence[str], where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: networks expect different names; {twice[0]} is there twice")


def combined(ours: list[StudyNetwork], preset: list[StudyNetwork]) -> list[StudyNetwork]:
    """A user's own networks after a preset's.

    Raises:
        UserError: two of one name.
    """
    _distinct([one.name for one in [*preset, *ours]], "--models with preset = true")
    return [*preset, *ours]
