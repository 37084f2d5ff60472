"""The conditions of a store: where the inputs of each come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repsim.attacks import AttackSpec, noise_control, run_attack
from repsim.data import ImageData
from repsim.errors import UserError
from repsim.runtime import Runtime
from repsim.store import Store, match_rows


@dataclass(frozen=True)
class _Batch:
    """Images start to stop: as stored, as the network takes them, labels, keys of random draws."""

    start: int
    stop: int
    pixels: Tensor
    images: Tensor
    labels: Tensor
    keys: Tensor


@dataclass(frozen=True)
class _Source:
    """A condition: where its inputs come from.

    `make(batch)` gives the inputs and, where it is known, the first step of success.
    """

    name: str
    kind: str
    attack: Mapping[str, Any] | None
    norm: str
    make: Callable[[_Batch], tuple[Tensor, Tensor | None]]


def _conditions(
    attacks: Sequence[AttackSpec],
    run: _Run,
    seed: int,
    control: bool,
    there: Mapping[str, Any],
    inputs_from: str | Path | None,
    notes: list[str],
) -> list[_Source]:
    """Clean, the control, the attacks and the conditions of another store, in this order."""
    specs = list(attacks)
    foreign = [] if inputs_from is None else _foreign(Path(inputs_from), run, control)
    controls = [name for name, attack in there.items() if attack and attack.get("control")]
    has_control = any(s.is_control for s in specs) or any(s.kind == "control" for s in foreign)
    if control and not has_control:
        spec = _control_of(specs, notes)
        if spec is not None and not controls:
            specs.insert(0, spec)
        elif spec is not None and there[controls[0]]["params"] != dict(spec.params):
            notes.append(
                f"the control {controls[0]} in the store has the size of an earlier attack: "
                f"{_settings(there[controls[0]]['params'])}, not {_settings(spec.params)}"
            )
    clean = _Source("clean", "clean", None, "linf", lambda batch: (batch.images, None))
    sources = [clean, *(_attacked(spec, run, seed) for spec in specs), *foreign]
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise UserError(
            f"conditions expect a name each; got {', '.join(names)}; name them apart with as=NAME"
        )
    return sources


def _attacked(spec: AttackSpec, run: _Run, seed: int) -> _Source:
    def make(batch: _Batch) -> tuple[Tensor, Tensor | None]:
        record: dict[str, Tensor] = {}
        with run.runtime.autocast():
            inputs = run_attack(
                spec, run.model, batch.images, batch.labels,
                ids=batch.keys, seed=seed, mode="represent", record=record,
            )  # fmt: skip
        return inputs, record.get("first_success")

    kind = "control" if spec.is_control else "attack"
    norm = spec.norm if spec.norm in ("linf", "l2") else "l2"
    return _Source(spec.condition, kind, spec.to_json(), norm, make)


def _control_of(specs: Sequence[AttackSpec], notes: list[str]) -> AttackSpec | None:
    """Noise of the first attack's size."""
    first = next((spec for spec in specs if not spec.is_control), None)
    if first is None:
        return None
    if first.norm not in ("linf", "l2") or "eps" not in first.params:
        notes.append(f"no control was added: the attack {first.condition} has no linf or l2 eps")
        return None
    return noise_control(first.params["eps"], first.norm)


def _foreign(path: Path, run: _Run, control: bool) -> list[_Source]:
    """The attacked images of another store, for the same samples."""
    other = open_store(path)
    run.opened.append(other)
    rows = match_rows(run.data.ids, other.ids)
    missing = int((rows < 0).sum())
    if missing:
        raise UserError(
            f"--inputs-from {path}: expected attacked images of all {len(rows)} samples; {missing} "
            f"are not in it (it has {len(other)} of {other.data['name']}/{other.data['split']})"
        )
    names = [
        name
        for name in other.conditions
        if other.kind(name) == "attack" or (control and other.kind(name) == "control")
    ]
    if not names:
        raise UserError(f"--inputs-from {path}: expected attacked images; it has only clean ones")
    origin = {"model": other.model["name"], "sha256": other.model["sha256"],
              "seed": other.request["seed"]}  # fmt: skip

    def source(name: str) -> _Source:
        def make(batch: _Batch) -> tuple[Tensor, Tensor | None]:
            inputs = other.inputs(name, rows[batch.start : batch.stop])
            return run.runtime.images(inputs), None

        attack = {"inputs_from": origin, **(other.attack(name) or {})}
        return _Source(name, other.kind(name), attack, other.norm(name), make)

    return [source(name) for name in names]


