"""The stage `train`: a network from where it can be had, as the study's own checkpoint.

In this order: a user's own file; the study's folder, where it is that network already; a folder of
ready checkpoints; training. What is ready is known by what stands inside it, never by its name.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from repsim import __version__, distributed
from repsim.attacks.table import REPRESENTATION
from repsim.checkpoint import LoadedModel, load_model, read_plain, save_checkpoint
from repsim.data import ImageData, channel_statistics, draw
from repsim.errors import UserError
from repsim.files import replacing, sha256_of
from repsim.study.networks import StudyNetwork, training_plan
from repsim.study.settings import UNTRAINED
from repsim.study.study import Study
from repsim.train import Phase, load_recipe, train

# What of a training's record decides the network; device, precision and layout do not.
_SAME = ("arch", "arch_args", "classes", "channels", "image_size", "mean", "std", "data",
         "scheme", "scenario", "seed")  # fmt: skip
_SAME_CONFIG = ("phases", "projector", "dual_norm")
_DECIDED = ("supervised", "temperature")  # of its attack, by a contrastive objective


def training_images(study: Study, network: StudyNetwork) -> ImageData:
    """The images that a network is trained on: a class-balanced draw, or all."""
    images = study.train_images
    recipe = load_recipe(network.kind.recipe) if network.kind and network.kind.recipe else None
    samples = study.settings.samples or (recipe.samples if recipe else None)
    return images if samples is None or samples >= len(images) else draw(images, samples)


def train_settings(study: Study, network: StudyNetwork) -> dict[str, Any]:
    """What decides a network, as plain values: the hash of its stage."""
    if network.checkpoint:
        own = {"sha256": sha256_of(study.own_file(network))}
        return {"own": own, "arch": network.arch, "mean": network.mean, "std": network.std,
                "classes": list(study.test_images.classes)}  # fmt: skip
    return wanted(study, network)


def wanted(study: Study, network: StudyNetwork) -> dict[str, Any]:
    """What a checkpoint has to say of itself to be this network."""
    images = training_images(study, network)
    _, channels, _, size = images.images.shape
    recipe = load_recipe(network.kind.recipe) if network.kind and network.kind.recipe else None
    plain = recipe is not None and not recipe.normalisation
    mean, std = ([0.0], [1.0]) if plain else channel_statistics(images.images)
    found: dict[str, Any] = {
        "arch": network.arch, "arch_args": {}, "classes": list(images.classes),
        "channels": channels, "image_size": size,
        "mean": mean * channels if plain else mean, "std": std * channels if plain else std,
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
    meta: Mapping[str, Any], network: Mapping[str, Any], start: Mapping[str, Any] | None = None
) -> bool:
    """Whether a checkpoint is the network that is wanted.

    Checkpoints of earlier versions are understood: a setting that there was not yet had its
    default, and what an objective decides of its attack was not recorded with the attack. Where
    one started from is compared by content, else by scheme, scenario and attack, as far as it says.

    Args:
        meta: the checkpoint's entries.
        network: of `wanted`.
        start: entries and sha256 of the network that it has to start from; None for none.
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
    # The encoder alone, from which a contrastive network goes on, is a file of its own.
    if init.get("sha256") == start["sha256"]:
        return True
    return all(
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
    """A file that is this network already: in the study's folder, else among the ready ones."""
    about = wanted(study, network)
    start = _start_entries(study, network)
    if network.init and start is None:
        return None
    for path in [study.folder / network.file, *_ready(study)]:
        meta = _meta(path)
        if meta is not None and is_the_same(meta, about, start):
            return path
    return None


def _start_entries(study: Study, network: StudyNetwork) -> dict[str, Any] | None:
    """Entries and sha256 of the network that it starts from, where that is ready; else None."""
    if not network.init:
        return None
    path = find_ready(study, study.network(network.init))
    return None if path is None else {**(_meta(path) or {}), "sha256": sha256_of(path)}


def make_network(study: Study, network: StudyNetwork) -> dict[str, Any]:
    """The stage's work; see the module's docstring. Returns where the network is from."""
    out = study.path(network.file)
    if network.checkpoint:
        return _import(study, network, out)
    if network.scheme == UNTRAINED:
        return _untrained(wanted(study, network), out)
    ready = find_ready(study, network)
    distributed.barrier()  # before the file that another process looks at is there
    if ready is not None:
        if ready != out and distributed.is_main():
            with replacing(out) as beside:
                shutil.copyfile(ready, beside)
            study.progress.say(f"{network.name}: taken from {ready.name}")
        return {"source": "trained" if ready == out else "checkpoints", "file": ready.name}
    plan = training_plan(network, study.settings)
    plain = not load_recipe(network.kind.recipe).normalisation if network.kind else False
    # A finished training of other settings lies in its place; an unfinished one of these goes on.
    report = train(
        training_images(study, network), network.arch, out, plan,
        init=_start(study, network) if network.init else None,
        runtime=study.runtime(training=True), mean=[0.0] if plain else None,
        std=[1.0] if plain else None, overwrite=True, progress=study.progress,
    )  # fmt: skip
    seconds = sum(row.get("seconds", 0.0) for row in report.history)
    return {"source": "trained", "training_seconds": round(seconds, 2)}


def _start(study: Study, network: StudyNetwork) -> LoadedModel:
    """The network that a second phase starts from: of contrastive ones the encoder alone."""
    loaded = study.load(network.init)
    if loaded.projector is None:
        return loaded
    return replace(loaded, meta={**loaded.meta, "head": []})


def _ready(study: Study) -> list[Path]:
    """Checkpoints in the folders of ready ones, in order."""
    return [path for folder in study.machine.checkpoints for path in sorted(folder.glob("*.pt"))]


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


def _import(study: Study, network: StudyNetwork, out: Path) -> dict[str, Any]:
    """A user's own file in the study's form."""
    source = study.own_file(network)
    images = study.test_images
    content = read_plain(source)
    own = isinstance(content, dict) and "schema" in content and "arch" in content
    loaded = load_model(source) if own else load_model(
        source, arch=network.arch, classes=images.classes, channels=images.images.shape[1],
        image_size=images.images.shape[-1], mean=network.mean or None, std=network.std or None,
    )  # fmt: skip
    _check_fit(loaded, images, network.name)
    loaded.require_head(f"network {network.name} of a study")
    if own:
        with replacing(out) as beside:
            shutil.copyfile(source, beside)
    else:
        meta = {**loaded.meta, "scheme": network.scheme, "scenario": network.scenario,
                "data": {"name": images.name, "fingerprint": images.fingerprint}}  # fmt: skip
        weights = loaded.model.encoder.state_dict()
        save_checkpoint(out, weights, repsim_version=__version__, **meta)
    return {"source": "own", "file": source.name}


def _check_fit(loaded: LoadedModel, images: ImageData, name: str) -> None:
    meta = loaded.meta
    takes = (meta["channels"], meta["image_size"], meta["image_size"], len(meta["classes"]))
    came = (*images.images.shape[1:], len(images.classes))
    if takes != came:
        raise UserError(
            f"network {name} takes images of shape {takes[:3]} in {takes[3]} classes; "
            f"{images.name} has {came[:3]} in {came[3]}; try another --data"
        )


def _untrained(about: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The control: the architecture with its initial weights."""
    loaded = load_model(
        about["arch"], classes=about["classes"], channels=about["channels"],
        image_size=about["image_size"], mean=about["mean"], std=about["std"], seed=about["seed"],
    )  # fmt: skip
    entries = {key: about[key] for key in ("scheme", "scenario", "data")}
    save_checkpoint(
        out, loaded.model.encoder.state_dict(), history=[], repsim_version=__version__,
        **{**loaded.meta, **entries},
    )  # fmt: skip
    return {"source": "untrained"}
