"""`study.json`: the settings, networks and stages of a study, for its report and its readers."""

from __future__ import annotations

from typing import Any

from repsim.files import sha256_of
from repsim.study.stage import Records
from repsim.study.study import Study, hardware, versions


def write_study(study: Study, records: Records, command: str) -> None:
    """Write `study.json` with what is known now.

    Args:
        study: the study.
        records: of its stages.
        command: the user's.
    """
    stages = [_stage(records, name) for name in records.stages]
    study.write_json("study.json", {
        "study": "universal",
        "preset": study.settings.preset,
        "about": study.settings.about,
        "command": command.partition(" --stop-after")[0],
        "settings": study.settings.to_json(),
        "networks": [_network(study, records, one.name) for one in study.networks],
        "conditions": conditions(study),
        "seeds": sorted({one.seed for one in study.networks}),
        "versions": versions(),
        "hardware": hardware(study.machine.device),
        "seconds": round(sum(stage["seconds"] or 0.0 for stage in stages), 1),
        "stages": stages,
    })  # fmt: skip


def conditions(study: Study) -> dict[str, Any]:
    """What the conditions of the comparison are: the attacks with all their settings."""
    from repsim.study.measure import NOISE, own_attack, shared_networks
    from repsim.study.shared import SHARED

    own = own_attack(study)
    return {
        "own": own.condition,
        "noise": NOISE,
        "shared": SHARED,
        "attack": {"text": own.text, **own.to_json()},
        "shared_made_on": shared_networks(study),
        "robust": study.settings.evaluate.attacks[0],
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
        **{key: record.get(key) for key in ("seconds", "processor_seconds", "finished")},
        "command": stage.command,
        "output": list(stage.outputs),
        "needs": list(stage.needs),
    }
