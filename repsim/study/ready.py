"""Which network a file is: by what stands inside it, never by its name.

A checkpoint does not hold the code of an architecture or an objective of the user's own, so its
hash is kept beside it, in `NAME.pt.sources`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repsim.attacks.table import REPRESENTATION
from repsim.checkpoint import read_plain
from repsim.errors import UserError
from repsim.files import replacing, sha256_of
from repsim.registry import load_object, source_sha256
from repsim.study.networks import StudyNetwork, training_plan
from repsim.study.settings import UNTRAINED
from repsim.study.study import Study, Training
from repsim.train import Phase, load_recipe

# What of a training's record decides the network; device, precision and layout do not.
_SAME = ("arch", "arch_args", "classes", "channels", "image_size", "mean", "std", "data",
         "scheme", "scenario", "seed")  # fmt: skip
_SAME_CONFIG = ("phases", "projector", "dual_norm")
_DECIDED = ("supervised", "temperature")  # of its attack, by a contrastive objective


def training_of(study: Study, network: StudyNetwork) -> Training:
    """The images that a network is trained on: as many as the study or its recipe says."""
    recipe = load_recipe(network.kind.recipe) if network.kind and network.kind.recipe else None
    return study.training(study.settings.samples or (recipe.samples if recipe else None))


def train_settings(study: Study, network: StudyNetwork) -> dict[str, Any]:
    """What decides a network, as plain values: the hash of its stage."""
    code = in_key(sources(study, network))
    if network.checkpoint:
        own = {"sha256": sha256_of(study.own_file(network))}
        return {"own": own, "arch": network.arch, "mean": network.mean, "std": network.std,
                "classes": list(study.test_images.classes), **code}  # fmt: skip
    return {**wanted(study, network), **code}


def in_key(code: Mapping[str, str]) -> dict[str, Any]:
    """What `sources` found as an entry of a stage's settings; none where it found nothing."""
    return {"sources": dict(code)} if code else {}


def sources(study: Study, network: StudyNetwork) -> dict[str, str]:
    """SHA-256 of the user's own code that makes a network, by what it is asked for as.

    Empty where all of it is repsim's: its version changes what it does, and says so in the stages'
    formats. (A training attack of the user's own is known to the checkpoint itself.)
    """
    asked = {network.arch: "model"}
    if not network.checkpoint and network.scheme != UNTRAINED:
        for phase in training_plan(network, study.settings).phases:
            asked[phase.objective.partition(",")[0]] = "scheme"
    found = {}
    for name, kind in asked.items():
        if ":" in name:
            load_object(name, kind=kind)  # before it is there, a module has no file
            found[name] = source_sha256(name) or ""
    return found


def wanted(study: Study, network: StudyNetwork) -> dict[str, Any]:
    """What a checkpoint has to say of itself to be this network."""
    images, mean, std = training_of(study, network)
    _, channels, _, size = images.images.shape
    recipe = load_recipe(network.kind.recipe) if network.kind and network.kind.recipe else None
    plain = recipe is not None and not recipe.normalisation
    if plain:
        mean, std = [0.0] * channels, [1.0] * channels
    found: dict[str, Any] = {
        "arch": network.arch, "arch_args": dict(network.arch_args), "classes": list(images.classes),
        "channels": channels, "image_size": size,
        "mean": mean, "std": std,
        "data": {"name": images.name, "fingerprint": images.fingerprint, "samples": len(images)},
        "scheme": UNTRAINED, "scenario": UNTRAINED, "seed": network.seed, "config": None,
        "precision": study.settings.precision,
    }  # fmt: skip
    if network.scheme != UNTRAINED:
        plan = training_plan(network, study.settings).to_json()
        found |= {key: plan[key] for key in ("scheme", "scenario")}
        found["config"] = {key: plan[key] for key in _SAME_CONFIG}
    return dict(json.loads(json.dumps(found)))


def is_the_same(
    meta: Mapping[str, Any],
    network: Mapping[str, Any],
    start: Mapping[str, Any] | None = None,
    *,
    loose: bool = False,
) -> bool:
    """Whether a checkpoint is the network that is wanted.

    Checkpoints of earlier versions are understood: a setting that there was not yet had its
    default, and what an objective decides of its attack was not recorded with the attack.

    Args:
        meta: the checkpoint's entries.
        network: of `wanted`.
        start: entries and sha256 of the network that it has to start from; None for none.
        loose: it may have started from another file than that, which says the same scheme,
            scenario and attack, as far as it says.
    """
    if not _equal({key: meta.get(key) for key in _SAME}, {key: network[key] for key in _SAME}):
        return False
    if not meta.get("head"):  # the encoder alone, which is written between two phases
        return False
    config = meta.get("config") or {}
    if network["precision"] not in ("auto", config.get("precision")):
        return False
    if (network["config"] is None) != (not config):
        return False
    if network["config"] is not None:
        there = {key: config.get(key) for key in _SAME_CONFIG}
        if not _equal(_settled(there), _settled(network["config"])):
            return False
    init = meta.get("init")
    if start is None or not init:
        return (start is None) == (not init)
    if init.get("sha256") == start["sha256"]:
        return True
    return loose and all(
        _equal(_attack(init[key]), _attack(start.get(key)))
        for key in ("scheme", "scenario", "attack")
        if key in init
    )


_DEFAULTS = Phase().to_json()


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training without what its record may leave out."""
    phases = [
        {**_DEFAULTS, **phase, "attack": _attack(phase.get("attack"))}
        for phase in config.get("phases") or []
    ]
    return {**config, "phases": phases}


def _attack(attack: Any) -> Any:
    """An attack without what a contrastive objective decides of it; anything else as it is."""
    if not isinstance(attack, Mapping) or attack["name"] not in REPRESENTATION:
        return attack
    return {**attack, "params": {k: v for k, v in attack["params"].items() if k not in _DECIDED}}


def _equal(a: Any, b: Any) -> bool:
    """Plain values up to rounding; a tuple is a list."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


def find_ready(study: Study, network: StudyNetwork) -> Path | None:
    """A file that is this network already: in the study's folder, else among the ready ones.

    One that went on from another network has to have started from the very file that the study
    has of it. Ready networks alone may have started from another file of the same training, such
    as its encoder without the head, which is not kept with them: where that training is ready, too.
    """
    about, code = wanted(study, network), sources(study, network)
    start, ready = _start_entries(study, network)
    if network.init and start is None:
        return None
    own = study.folder / network.file
    for path in [own, *_ready(study)]:
        meta = _meta(path)
        if meta is None or noted(path) != code:
            continue
        if is_the_same(meta, about, start, loose=ready and path != own):
            return path
    return None


def _start_entries(study: Study, network: StudyNetwork) -> tuple[dict[str, Any] | None, bool]:
    """Entries and sha256 of the network that it starts from, where there is one that is there.

    And whether that is one of the ready ones, or a copy of one.
    """
    path = find_ready(study, study.network(network.init)) if network.init else None
    if path is None:
        return None, False
    sha256, size = sha256_of(path), path.stat().st_size
    ready = any(
        one == path or (one.stat().st_size == size and sha256_of(one) == sha256)
        for one in _ready(study)
    )
    return {**(_meta(path) or {}), "sha256": sha256}, ready


def _ready(study: Study) -> list[Path]:
    """Checkpoints in the folders of ready ones, in order."""
    folders = study.machine.checkpoints
    return [path for folder in folders for path in sorted(folder.glob("[!.]*.pt"))]


def _meta(path: Path) -> dict[str, Any] | None:
    """A checkpoint's entries; None where it is none."""
    if not path.is_file():
        return None
    try:
        content = read_plain(path)
    except UserError:
        return None
    if not isinstance(content, dict) or "config" not in content:
        return None
    return {key: value for key, value in content.items() if key not in ("state_dict", "projector")}


def noted(path: Path) -> dict[str, str]:
    """The user's own code that a checkpoint was made by, as `sources` has it."""
    try:
        found = json.loads(_notes(path).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note_sources(out: Path, code: Mapping[str, str]) -> None:
    """Write down the code that makes a checkpoint; what other code left of it is removed."""
    if noted(out) == code:
        return
    for path in (out, out.with_name(out.name + ".resume"), _notes(out)):
        path.unlink(missing_ok=True)
    if code:
        with replacing(_notes(out)) as beside:
            beside.write_text(json.dumps(code) + "\n", "utf-8")


def _notes(path: Path) -> Path:
    return path.with_name(path.name + ".sources")
