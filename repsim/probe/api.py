"""Probes of every layer at once: of a network as it runs, or of two stores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from repsim.attacks import AttackSpec
from repsim.attacks.table import INNER
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, to_float
from repsim.errors import UserError
from repsim.extract.conditions import asked_conditions
from repsim.hooks import select_layers
from repsim.probe.adaptive import aimed, require_adaptive
from repsim.probe.checks import (
    check_attacks,
    check_splits,
    check_stores,
    other_attacks,
    require_whole,
    stored_reductions,
)
from repsim.probe.reduce import choose_reduction
from repsim.probe.report import ProbeReport
from repsim.probe.settings import Settings, trainings
from repsim.probe.source import LiveSource, StoredSource, not_as_many
from repsim.probe.work import Work
from repsim.progress import Progress, Silent
from repsim.runtime import Runtime
from repsim.store import Store


def probe_live(
    model: LoadedModel,
    train: ImageData,
    test: ImageData,
    *,
    layers: str | Sequence[str] = "blocks",
    attacks: Sequence[AttackSpec] = (),
    train_on: Sequence[str] = ("clean",),
    adaptive: bool = False,
    control: bool = True,
    solver: str = "ridge",
    runtime: Runtime | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> ProbeReport:
    """A probe of every layer of a frozen network, trained and tested as it runs.

    One forward of a batch feeds the probes of all layers; no activation is written. Attacked
    images are made once by the attack at full strength and kept in memory.

    Args:
        model: the network.
        train: images that the probes are trained on; a part of them chooses the strength.
        test: other images, of the same classes.
        layers: as `select_layers` takes it.
        attacks: made on the whole network; each is a condition of the test images. Those that
            `train_on` names are made on the training images too.
        train_on: "clean", an attack's condition, or "both:CONDITION".
        adaptive: also attack each probe itself, by the same attacks; those whose images are given
            (`AttackSpec.fixed`) stay what they are, transfer.
        control: also test on noise of the first attack's size.
        solver: "ridge", "logistic", "sgd", "adam" or "knn".
        runtime: device, precision, layout.
        seed: of the attacks' draws, the validation part and the order of batches.
        progress: told of every batch.
        options: of `Settings`: strengths, reduce, most, epochs, lr, batch_size, validation,
            memory, hold.

    Raises:
        UserError: settings that cannot be meant, images that do not belong together, an attack
            that needs a head where there is none, or activations that are not finite.
    """
    began = time.monotonic()
    runtime, progress = runtime or Runtime.of(precision="float32"), progress or Silent()
    settings = Settings(solver=solver, seed=seed, **options).checked()
    specs, notes = list(attacks), list[str]()
    for spec in specs:
        if not spec.is_control and spec.name not in INNER:
            model.require_head(f"attack {spec.condition}")
    if adaptive:
        require_adaptive(aimed(specs), solver)
    kept = check_splits(train.labels, test.labels, train.ids, test.ids, notes)
    test = test if len(kept) == len(test) else test.take(kept)
    if train.classes != test.classes:
        raise not_as_many("classes", train.classes[:4], test.classes[:4])
    network = runtime.place(model.model)
    chosen = select_layers(network, runtime.images(to_float(train.images[:8])), layers)
    notes += [chosen.note] if chosen.note else []
    reductions = {
        layer.name: choose_reduction(settings.reduce, layer.shape, settings.most)
        for layer in chosen.layers
    }
    with ExitStack() as stack:

        def source(data: ImageData, wanted: Sequence[AttackSpec], noise: bool) -> LiveSource:
            conditions = asked_conditions(
                wanted, network, data, runtime, seed, noise, {}, None, notes, stack
            )
            return LiveSource(
                model, data, conditions, reductions, runtime, settings.batch_size, progress
            )

        # Of the training split nothing is made that no probe is trained on.
        training = source(train, specs, True)
        asked = trainings(train_on, training.kinds)
        testing = source(test, specs, control)
        found = Work(training, testing, asked, len(test.classes), settings, progress, notes)
        found.run(model.name)
        if adaptive:
            found.attack(model, aimed(specs), testing.inputs, runtime)
    return found.report({
        "models": {model.name: _about(model)},
        "train": _about_data(train), "test": _about_data(test),
        "attacks": {one.name: one.attack for one in testing.conditions.values()},
        "train_on": [one.name for one in asked],
        "settings": settings.to_json(), "seed": seed, "precision": runtime.precision,
        "live": True,
    }, began)  # fmt: skip


def probe_stores(
    train: Store,
    test: Store,
    *,
    layers: str | Sequence[str] | None = None,
    train_on: Sequence[str] = ("clean",),
    model: LoadedModel | None = None,
    attacks: Sequence[AttackSpec] = (),
    adaptive: bool = False,
    solver: str = "ridge",
    runtime: Runtime | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> ProbeReport:
    """A probe of every layer that two stores of one network have.

    Args:
        train: of the training split; its conditions may be trained on.
        test: of the test split; its conditions are tested on.
        layers: names or shell patterns among the stores' layers; all by default.
        train_on: see `probe_live`; "adv" is the store's one attack.
        model: the network of the stores, for `adaptive`.
        attacks: to aim at each probe, for `adaptive`.
        adaptive, solver, runtime, seed, progress, options: see `probe_live`.

    Raises:
        UserError: stores of different networks, layers, reductions or classes, of one split, or of
            different attacks of one name; or as in `probe_live`.
    """
    began = time.monotonic()
    runtime, progress = runtime or Runtime.of(precision="float32"), progress or Silent()
    settings = Settings(solver=solver, seed=seed, **options).checked()
    notes: list[str] = []
    check_stores(train, test)
    if adaptive:
        if model is None or model.sha256 != test.model["sha256"]:
            raise UserError(
                f"--adaptive with stores expects --model with their network, "
                f"{test.model['name']}; got {'none' if model is None else model.name}"
            )
        require_adaptive(aimed(attacks), solver)
    reductions = stored_reductions(train, test, layers, settings)
    if adaptive:
        require_whole(test, reductions)
    labels = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    kept = check_splits(*labels, train.ids, test.ids, notes)
    training = StoredSource(train, reductions, torch.arange(len(train)), runtime)
    testing = StoredSource(test, reductions, kept, runtime)
    asked = trainings(train_on, training.kinds)
    trained_on = list(dict.fromkeys(name for one in asked for name in one.conditions))
    check_attacks(train, test, trained_on)
    work = Work(training, testing, asked, len(test.data["classes"]), settings, progress, notes)
    work.run(str(test.model["name"]))
    if adaptive:
        assert model is not None
        notes += other_attacks(test, aimed(attacks))
        runtime.place(model.model)
        work.attack(model, aimed(attacks), testing.inputs, runtime)
    return work.report({
        "models": {str(test.model["name"]): {"sha256": test.model["sha256"]}},
        "train": {**train.data, "samples": len(train)},
        "test": {**test.data, "samples": len(kept)},
        "attacks": {name: test.attack(name) for name in test.conditions},
        "train_attacks": {name: train.attack(name) for name in trained_on},
        "adaptive_attacks": {one.condition: one.to_json() for one in aimed(attacks)},
        "train_on": [one.name for one in asked],
        "settings": settings.to_json(), "seed": seed, "precision": runtime.precision,
        "live": False,
    }, began)  # fmt: skip


def _about(model: LoadedModel) -> dict[str, Any]:
    kept = {key: model.meta.get(key) for key in ("arch", "scheme", "scenario")}
    return {"sha256": model.sha256, **kept}


def _about_data(data: ImageData) -> dict[str, Any]:
    return {"name": data.name, "split": data.split, "fingerprint": data.fingerprint,
            "samples": len(data)}  # fmt: skip
