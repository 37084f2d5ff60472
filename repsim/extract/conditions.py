"""The conditions of a store: where the inputs of each come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repsim.attacks import NORMS, AttackSpec, noise_control, run_attack
from repsim.attacks.table import MINIMUM_NORM
from repsim.data import ImageData
from repsim.errors import UserError
from repsim.runtime import Runtime
from repsim.store import match_rows, open_store


@dataclass(frozen=True)
class Batch:
    """Rows start to stop of the data.

    Attributes:
        start, stop: the rows.
        pixels: uint8, as they are stored.
        images: float in [0, 1], as the network takes them.
        labels: int64 (batch,).
        keys: int64 (batch,), keys of the random draws.
    """

    start: int
    stop: int
    pixels: Tensor
    images: Tensor
    labels: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Source:
    """A condition and how its inputs are made.

    Attributes:
        name: of the condition.
        kind: "clean", "control" or "attack".
        attack: what the store records about it; None for clean.
        norm: in which the size of a perturbation is measured.
        make: batch -> inputs (batch, c, h, w) and, where it is known, the first step of success
            (batch,).
    """

    name: str
    kind: str
    attack: Mapping[str, Any] | None
    norm: str
    make: Callable[[Batch], tuple[Tensor, Tensor | None]]


def asked_conditions(
    attacks: Sequence[AttackSpec],
    model: nn.Module,
    data: ImageData,
    runtime: Runtime,
    seed: int,
    control: bool,
    there: Mapping[str, Any],
    inputs_from: str | Path | None,
    notes: list[str],
    stack: ExitStack,
) -> list[Source]:
    """Clean, the control, the attacks and the conditions of another store, in this order.

    Args:
        attacks, model, data, runtime, seed, control, inputs_from: see `extract`.
        there: conditions of the finished store, with their attacks.
        notes: gets what the user should know.
        stack: closes the other store.

    Raises:
        UserError: two conditions of one name; another store that does not fit.
    """
    foreign = [] if inputs_from is None else _foreign(Path(inputs_from), data, runtime, stack)
    if not control:
        foreign = [source for source in foreign if source.kind != "control"]
    specs = list(attacks)
    given = any(s.is_control for s in specs) or any(s.kind == "control" for s in foreign)
    if control and not given and (spec := _control_for(specs, notes)):
        kept = [name for name, attack in there.items() if attack and attack["control"]]
        if not kept:
            specs.insert(0, spec)
        elif spec.to_json()["params"] not in [there[name]["params"] for name in kept]:
            notes.append(
                f"the control {', '.join(kept)} in the store has the size of an earlier attack; "
                f"compare {specs[0].condition} with one of its own: --attack {spec.text},as=NAME"
            )
    for spec in specs:
        if spec.name in MINIMUM_NORM and spec.params["eps"] is not None:
            notes.append(
                f"{spec.condition} keeps the smallest perturbation of each image, beyond its eps "
                "too; for an accuracy at that eps: repsim evaluate"
            )
    clean = Source("clean", "clean", None, "linf", lambda batch: (batch.images, None))
    attacked = [_attacked(spec, model, runtime, seed) for spec in specs]
    sources = [clean, *attacked, *foreign]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(
            f"conditions expect a name each; got {', '.join(names)}; name them apart with as=NAME"
        )
    return sources


def _attacked(spec: AttackSpec, model: nn.Module, runtime: Runtime, seed: int) -> Source:
    def make(batch: Batch) -> tuple[Tensor, Tensor | None]:
        record: dict[str, Tensor] = {}
        with runtime.autocast():
            inputs = run_attack(
                spec,
                model,
                batch.images,
                batch.labels,
                ids=batch.keys,
                seed=seed,
                mode="represent",
                record=record,
            )
        return inputs, record.get("first_success")

    kind = "control" if spec.is_control else "attack"
    norm = spec.norm if spec.norm in NORMS else "l2"
    return Source(spec.condition, kind, spec.to_json(), norm, make)


def _control_for(specs: Sequence[AttackSpec], notes: list[str]) -> AttackSpec | None:
    """Noise of the first attack's size."""
    if not specs:
        return None
    first = specs[0]
    if first.norm in NORMS and first.params.get("eps") is not None:
        return noise_control(first.params["eps"], first.norm)
    notes.append(f"no control was added: the attack {first.condition} has no eps in linf, l2 or l1")
    return None


def _foreign(path: Path, data: ImageData, runtime: Runtime, stack: ExitStack) -> list[Source]:
    """Controls and attacks of another store, for the same samples."""
    other = stack.enter_context(open_store(path))
    rows = match_rows(data.ids, other.ids)
    if missing := int((rows < 0).sum()):
        raise UserError(
            f"--inputs-from {path}: expected attacked images of all {len(rows)} samples; {missing} "
            f"are not in it (it has {len(other)} of {other.data['name']}/{other.data['split']}); "
            "extract the same samples"
        )
    names = [name for name in other.conditions if other.kind(name) != "clean"]
    if all(other.kind(name) != "attack" for name in names):
        raise UserError(
            f"--inputs-from {path}: expected attacked images; it has only "
            f"{', '.join(other.conditions)}; add some: repsim extract ... --attack pgd"
        )
    origin = {
        "model": other.model["name"],
        "sha256": other.model["sha256"],
        "seed": other.request["seed"],
    }

    def source(name: str) -> Source:
        def make(batch: Batch) -> tuple[Tensor, Tensor | None]:
            return runtime.images(other.inputs(name, rows[batch.start : batch.stop])), None

        attack = {"inputs_from": origin, **(other.attack(name) or {})}
        return Source(name, other.kind(name), attack, other.norm(name), make)

    return [source(name) for name in names]
