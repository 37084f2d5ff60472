"""`study.json`: the settings, networks and stages of a study, for its report and its readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repsim.files import sha256_of
from repsim.study.stage import Records
from repsim.study.study import STUDY_FILE, Study, hardware, versions

PLACE = ("hardware", "versions", "device", "precision")


def write_study(study: Study, records: Records) -> None:
    """Write `study.json` with what is known now.

    `hardware` and `versions` are those that the stages ran on, several of one kind as a list;
    `made_on` has every distinct set of `PLACE` with the names of its stages.

    Args:
        study: the study.
        records: of its stages.
    """
    stages = [_stage(records, name) for name in records.stages]
    made_on = places(stages)
    here = {"hardware": hardware(study.machine.device), "versions": versions()}
    study.write_json(STUDY_FILE, {
        "study": "universal",
        "preset": study.settings.preset,
        "about": study.settings.about,
        "command": study.command,
        "settings": study.settings.to_json(),
        "networks": [_network(study, records, one.name) for one in study.networks],
        "conditions": conditions(study),
        "seeds": sorted({one.seed for one in study.networks}),
        **{key: _merged([one[key] for one in made_on] or [here[key]]) for key in here},
        "made_on": made_on,
        "seconds": round(sum(stage["seconds"] or 0.0 for stage in stages), 1),
        "stages": [
            {key: value for key, value in stage.items() if key not in ("hardware", "versions")}
            for stage in stages
        ],
    })  # fmt: skip


def place(study: Study, *, training: bool) -> dict[str, Any]:
    """Where a stage runs, for its record: `PLACE`, device and precision as they are resolved."""
    runtime = study.runtime(training=training)
    return {
        "hardware": hardware(study.machine.device),
        "versions": versions(),
        "device": runtime.device.partition(":")[0],
        "precision": runtime.precision,
    }


def places(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The distinct sets of `PLACE` among stages, each with its stages' names.

    Args:
        stages: with `name` and, where they say it, `PLACE`.
    """
    found: list[dict[str, Any]] = []
    for stage in stages:
        if not stage.get("hardware") or not stage.get("versions"):
            continue  # not done, or done by a version that did not say it
        there = {key: stage.get(key) for key in PLACE}
        same = next((one for one in found if {key: one[key] for key in PLACE} == there), None)
        if same is None:
            found.append(same := {**there, "stages": []})
        same["stages"].append(stage["name"])
    return found


def _merged(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One mapping of several: where they differ, the list of what they say."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in sets for key in one):
        said = list(dict.fromkeys(one[key] for one in sets if key in one))
        found[key] = said[0] if len(said) == 1 else said
    return found


def conditions(study: Study) -> dict[str, Any]:
    """What the conditions of the comparison are: the attacks with all their settings."""
    from repsim.study.finish import robust_condition
    from repsim.study.measure import NOISE, own_attack, shared_networks
    from repsim.study.shared import SHARED

    own = own_attack(study)
    return {
        "own": own.condition,
        "noise": NOISE,
        "shared": SHARED,
        "attack": {"text": own.text, **own.to_json()},
        "shared_made_on": shared_networks(study),
        "robust": robust_condition(study),
    }


def _network(study: Study, records: Records, name: str) -> dict[str, Any]:
    """A network with its checkpoint, where it is there."""
    one = study.network(name)
    record = records.read(records.stages[f"train-{name}"])
    file = study.folder / one.file
    return {
        **one.to_json(),
        "file": one.file,
        "sha256": sha256_of(file) if file.is_file() else None,
        "source": None if record is None else record.get("source"),
        "from": None if record is None else record.get("file"),
    }


def _stage(records: Records, name: str) -> dict[str, Any]:
    stage = records.stages[name]
    done = records.done(stage)
    record = (records.read(stage) if done else None) or {}
    return {
        "name": name,
        "kind": stage.kind,
        "network": stage.network,
        "status": "done" if done else "to do",
        **{key: record.get(key) for key in ("seconds", "processor_seconds", "finished", *PLACE)},
        "command": stage.command,
        "output": list(stage.outputs),
        "needs": list(stage.needs),
    }
