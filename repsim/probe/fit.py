"""Probes of all layers by any solver, and what they predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.probe.classifiers import Classifier
from repsim.probe.descent import fit_descent
from repsim.probe.held import fit_logistic, fit_neighbours, joined
from repsim.probe.moments import Origin
from repsim.probe.ridge import RidgeLayer, fit_ridge
from repsim.probe.settings import DESCENT, Settings, Training, validation_rows
from repsim.probe.sizes import Sizes, grouped
from repsim.probe.source import Apart, HeldSource, Source, not_finite, passes
from repsim.progress import Progress

Probes = dict[tuple[str, str], Classifier]


def fit_probes(
    source: Source, trainings: Sequence[Training], classes: int, settings: Settings,
    progress: Progress, notes: list[str],
) -> Probes:  # fmt: skip
    """A probe by (layer, training); layers that hand on one output share theirs.

    Args:
        source: features of the training split.
        trainings: on what.
        classes: number of classes.
        settings: checked ones.
        progress: told of every pass.
        notes: gets what the user should know.

    Raises:
        UserError: activations that are not finite, a layer that does not fit the memory, or
            settings that the images do not allow.
    """
    names, repeats = list(source.reductions), source.repeats()
    given = trainings, classes, settings, progress, notes
    try:
        found = _fit(source, [name for name in names if name not in repeats], *given)
    except Apart:  # a network whose forward depends on the images
        found, repeats = _fit(source, names, *given), {}
    return {
        (name, one.name): found[repeats.get(name, name), one.name]
        for name in names
        for one in trainings
    }


def _fit(
    source: Source, names: Sequence[str], trainings: Sequence[Training], classes: int,
    settings: Settings, progress: Progress, notes: list[str],
) -> Probes:  # fmt: skip
    """Of these layers, each for itself."""
    held_out = validation_rows(source.labels, source.keys, settings.validation, settings.seed)
    conditions = list(dict.fromkeys(c for one in trainings for c in one.conditions))
    sizes = Sizes(source, len(conditions), int(held_out.sum()))
    if settings.solver in DESCENT:
        whole = sum(map(sizes.descent, names))
        if settings.hold and settings.epochs > 1 and whole <= settings.memory:
            source = HeldSource(source, names, conditions, settings.batch_size, progress)
        found = fit_descent(source, names, trainings, held_out, classes, settings, progress)
        return {**found}
    size = sizes.ridge if settings.solver == "ridge" else sizes.held
    groups = grouped(names, size, settings.memory)
    if len(groups) > 1:
        notes.append(
            f"the layers' probes are trained in {len(groups)} passes of {settings.memory >> 20} "
            "MiB; a larger --memory makes fewer"
        )
    probes: Probes = {}
    for group in groups:
        fit = _ridge if settings.solver == "ridge" else _held
        probes |= fit(source, group, trainings, held_out, classes, settings, progress)
    return probes


def _ridge(
    source: Source, names: Sequence[str], trainings: Sequence[Training], held_out: Tensor,
    classes: int, settings: Settings, progress: Progress,
) -> Probes:  # fmt: skip
    conditions = list(dict.fromkeys(c for one in trainings for c in one.conditions))
    training = len(held_out) - int(held_out.sum())
    layers: dict[tuple[str, str], RidgeLayer] = {}
    origins: dict[str, Origin] = {}
    for condition in conditions:
        for rows in passes(source, condition, settings.batch_size, progress):
            labels, apart = source.labels[rows].to(source.device), held_out[rows].to(source.device)

            def take(
                name: str, features: Tensor, condition: str = condition, labels: Tensor = labels,
                apart: Tensor = apart,
            ) -> None:  # fmt: skip
                if name not in origins:
                    origins[name] = Origin.of(features)
                key = condition, name
                if key not in layers:
                    few = training < source.reductions[name].used
                    layers[key] = RidgeLayer(origins[name], classes, keep=few)
                layers[key].add(features, labels, apart)

            source.feed(condition, rows, names, take)
    for (condition, name), layer in layers.items():
        if not layer.finite:
            raise not_finite(name, condition)
    probes: Probes = {}
    with progress.task("ridge", len(names), unit="layer") as task:
        for name in names:
            for one in trainings:
                chosen = [layers[condition, name] for condition in one.conditions]
                probes[name, one.name] = fit_ridge(chosen, settings)
            task.advance(1)
    return probes


def _held(
    source: Source, names: Sequence[str], trainings: Sequence[Training], held_out: Tensor,
    classes: int, settings: Settings, progress: Progress,
) -> Probes:  # fmt: skip
    conditions = list(dict.fromkeys(c for one in trainings for c in one.conditions))
    held = HeldSource(source, names, conditions, settings.batch_size, progress).held
    fit = fit_logistic if settings.solver == "logistic" else fit_neighbours
    labels, apart = source.labels.to(source.device), held_out.to(source.device)
    probes: Probes = {}
    with progress.task(settings.solver, len(names), unit="layer") as task:
        for name in names:
            for one in trainings:
                times = len(one.conditions)
                probes[name, one.name] = fit(
                    joined([held[condition, name] for condition in one.conditions]),
                    labels.repeat(times), apart.repeat(times), classes, settings,
                )  # fmt: skip
            task.advance(1)
    return probes


@torch.no_grad()
def predict(
    source: Source, probes: Probes, condition: str, batch_size: int, progress: Progress
) -> dict[tuple[str, str], NDArray[np.int64]]:
    """Predictions (n,) of every probe on all images under one condition, by (layer, training).

    Raises:
        UserError: activations that are not finite.
    """
    n = len(source.labels)
    found = {key: np.empty(n, dtype=np.int64) for key in probes}
    by_layer: dict[str, list[str]] = {}
    for layer, training in probes:
        by_layer.setdefault(layer, []).append(training)
    for rows in passes(source, condition, batch_size, progress):

        def take(name: str, features: Tensor, rows: Tensor = rows) -> None:
            for training in by_layer[name]:
                scores = probes[name, training].scores(features)
                if not bool(scores.isfinite().all()):
                    raise not_finite(name, condition)
                found[name, training][rows.numpy()] = scores.argmax(1).cpu().numpy()

        source.feed(condition, rows, list(by_layer), take)
    return found
