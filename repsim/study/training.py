"""The stage `train`: a network from where it can be had, as the study's own checkpoint.

In this order: a user's own file; the study's folder, where it is that network already; a folder of
ready checkpoints; training.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from repsim import __version__, distributed
from repsim.checkpoint import (
    LoadedModel,
    load_model,
    normalisation,
    read_plain,
    save_checkpoint,
)
from repsim.data import ImageData
from repsim.errors import UserError
from repsim.files import replacing
from repsim.models import Normalized, build_model
from repsim.study.networks import StudyNetwork, training_plan
from repsim.study.ready import find_ready, note_sources, sources, training_of, wanted
from repsim.study.settings import UNTRAINED
from repsim.study.study import Study
from repsim.train import load_recipe, train


def make_network(study: Study, network: StudyNetwork) -> dict[str, Any]:
    """The stage's work; see the module's docstring. Returns where the network is from."""
    out = study.path(network.file)
    if network.checkpoint:
        return _import(study, network, out)
    if network.scheme == UNTRAINED:
        return _untrained(study, network, out)
    ready = find_ready(study, network)
    distributed.barrier()  # before the file that another process looks at is there
    if distributed.is_main():
        note_sources(out, sources(study, network))
    if ready is not None:
        if ready != out and distributed.is_main():
            with replacing(out) as beside:
                shutil.copyfile(ready, beside)
            study.progress.say(f"{network.name}: taken from {ready.name}")
        return {"source": "trained" if ready == out else "checkpoints", "file": ready.name}
    distributed.barrier()  # what is left of a training by other code is gone
    plan = training_plan(network, study.settings)
    plain = not load_recipe(network.kind.recipe).normalisation if network.kind else False
    # A finished training of other settings lies in its place; an unfinished one of these goes on.
    report = train(
        training_of(study, network).images, network.arch, out, plan,
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


def load_own(study: Study, network: StudyNetwork) -> tuple[LoadedModel, bool]:
    """A user's own network, and whether its file is of repsim train.

    Raises:
        UserError: a file that cannot be read, or a network that does not fit the study.
    """
    source, images = study.own_file(network), study.test_images
    content = read_plain(source)
    own = isinstance(content, dict) and "schema" in content and "arch" in content
    try:
        loaded = load_model(source) if own else load_model(
            source, arch=network.arch, classes=images.classes, channels=images.images.shape[1],
            image_size=images.images.shape[-1], mean=network.mean or None, std=network.std or None,
        )  # fmt: skip
    except UserError as error:
        raise UserError(f"network {network.name}: {error}") from error
    _check_fit(loaded, images, network.name)
    loaded.require_head(f"network {network.name} of a study")
    return loaded, own


def _import(study: Study, network: StudyNetwork, out: Path) -> dict[str, Any]:
    """A user's own file in the study's form."""
    source, images = study.own_file(network), study.test_images
    loaded, own = load_own(study, network)
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


def bare_network(network: StudyNetwork, images: ImageData) -> LoadedModel:
    """A network's architecture with the initial weights of its seed, for images of a data set."""
    _, channels, _, size = images.images.shape
    torch.manual_seed(network.seed)
    encoder = build_model(
        network.arch, classes=len(images.classes), channels=channels, image_size=size,
        **network.arch_args,
    )  # fmt: skip
    meta: dict[str, Any] = {
        "arch": network.arch, "arch_args": dict(network.arch_args),
        "classes": list(images.classes), "channels": channels, "image_size": size,
        "seed": network.seed, "head": ["linear"], **normalisation(None, None, channels),
    }  # fmt: skip
    model = Normalized(encoder, meta["mean"], meta["std"]).eval()
    return LoadedModel(model, meta, f"{UNTRAINED}:{network.arch}:{network.seed}", network.arch)


def _untrained(study: Study, network: StudyNetwork, out: Path) -> dict[str, Any]:
    """The control: the architecture with its initial weights."""
    loaded, about = bare_network(network, study.test_images), wanted(study, network)
    entries = {key: about[key] for key in ("mean", "std", "scheme", "scenario", "data")}
    save_checkpoint(
        out, loaded.model.encoder.state_dict(), history=[], repsim_version=__version__,
        **{**loaded.meta, **entries},
    )  # fmt: skip
    return {"source": "untrained"}
