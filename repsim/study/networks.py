"""The networks of a study, and the preset's kinds and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from repsim.attacks import AttackSpec
from repsim.errors import UserError
from repsim.study.settings import UNTRAINED, Kind, Settings
from repsim.study.toml import table
from repsim.train import Plan, give_way, load_recipe, plan


@dataclass(frozen=True)
class StudyNetwork:
    """One network of a study.

    Attributes:
        name: as in every table; its checkpoint is `checkpoints/NAME.pt`.
        scheme: "sl", "scl", "cl", ...; "untrained".
        scenario: "st", "at", "partial-at", "full-at" or "untrained".
        seed: of its training.
        eps: linf size of its training attack in units of pixels in [0, 1]; None for none, or for an
            attack of another norm.
        kind: what it is trained by; None for a user's own.
        init: name of the network whose encoder it starts from; "" for none.
        arch: architecture.
        arch_args: its further arguments.
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
    arch_args: Mapping[str, Any] = field(default_factory=dict)
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
            found.append(replace(one, eps=_linf_eps(attack)))
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


def _linf_eps(attack: AttackSpec | None) -> float | None:
    """The size of a training attack, where it is one of linf."""
    if attack is None or attack.norm != "linf" or attack.params.get("eps") is None:
        return None
    return float(attack.params["eps"])


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
    known = plan(settings.data_name, recipe.scheme, recipe.scenario, protocol=recipe.protocol)
    if len(known.phases) == 1:
        head = {}
    elif "attack" in head and known.phases[1].attack is None:
        head.pop("attack")
    try:
        return plan(
            settings.data_name, recipe.scheme, recipe.scenario, protocol=recipe.protocol,
            phases="head" if network.init else "both", head=head, projector=recipe.projector,
            seed=network.seed, attack_defaults=attack_options,
            **({} if network.init else encoder),
        )  # fmt: skip
    except TypeError as error:  # a setting that no phase has
        raise UserError(f"network {network.name}: {error}") from error
