"""Probes of all layers by steps on batches: one forward a batch feeds every head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.keyed import keyed_bits
from repsim.optim import make_schedule
from repsim.probe.classifiers import Linear
from repsim.probe.heads import Heads
from repsim.probe.settings import Settings, Training
from repsim.probe.source import Source, not_finite
from repsim.progress import Progress

_STREAM = 0x65706F6368  # of the order of an epoch


def epoch_rows(
    keys: Tensor, training: Tensor, batch_size: int, seed: int, epoch: int
) -> list[Tensor]:
    """Rows of each batch: all training images in an order keyed by their content and the epoch.

    Args:
        keys: int64 (n,).
        training: int64 (m,), rows of the training images.
        batch_size: images a step; a last one of fewer stays.
        seed, epoch: of the order.
    """
    draw = keyed_bits(keys[training], 1, seed=seed, stream=_STREAM + epoch)[:, 0]
    return list(training[draw.argsort(stable=True)].split(batch_size))


def step_rule(heads: Heads, settings: Settings) -> torch.optim.Optimizer:
    """Adam, or SGD with Nesterov's momentum, of the heads' parameters.

    Fused: one trip over parameters, gradient and moments, which are as large as the features.
    """
    if settings.solver == "adam":
        return torch.optim.Adam([heads.parameters], lr=settings.lr, fused=True)
    return torch.optim.SGD(
        [heads.parameters], lr=settings.lr, momentum=0.9, nesterov=True, fused=True
    )


def fit_descent(
    source: Source, names: Sequence[str], trainings: Sequence[Training], held_out: Tensor,
    classes: int, settings: Settings, progress: Progress,
) -> dict[tuple[str, str], Linear]:  # fmt: skip
    """Probes of all layers by (layer, training), by SGD or Adam; see `Settings.strengths`.

    Of each layer and training one probe a strength is trained at once, from zero weights. Their
    features are standardised by the statistics of the images seen so far, which after the first
    epoch are those of all and stay. The strength with the most validation images right is kept, of
    several the largest.

    Args:
        source: features.
        names: layers.
        trainings: on what.
        held_out: bool (n,), the validation part.
        classes: number of classes.
        settings: epochs, rate, batch size, strengths.
        progress: told of every batch.

    Raises:
        UserError: activations that are not finite, or a training that does not stay finite.
    """
    conditions = list(dict.fromkeys(c for one in trainings for c in one.conditions))
    training, rest = torch.nonzero(~held_out)[:, 0], torch.nonzero(held_out)[:, 0]
    heads = Heads(source, names, trainings, classes, settings)
    steps = settings.epochs * -(-len(training) // settings.batch_size)
    optimiser = step_rule(heads, settings)
    schedule = make_schedule(optimiser, name="cosine", lr=settings.lr, steps=steps)
    total = settings.epochs * len(training)
    with progress.task(f"probes, {settings.epochs} epochs", total, unit="img") as task:
        for epoch in range(settings.epochs):
            for rows in epoch_rows(
                source.keys, training, settings.batch_size, settings.seed, epoch
            ):
                train_step(heads, source, conditions, rows, names, optimiser, first=epoch == 0)
                schedule.step()
                task.advance(len(rows))
    _require_finite(heads, trainings)
    return _chosen(heads, source, names, trainings, conditions, rest, settings)


def train_step(
    heads: Heads, source: Source, conditions: Sequence[str], rows: Tensor, names: Sequence[str],
    optimiser: torch.optim.Optimizer, *, first: bool,
) -> None:  # fmt: skip
    """One step of all heads: of each condition one forward of the batch.

    Args:
        heads: of all layers.
        source: outputs.
        conditions: that any training sees.
        rows: of the batch.
        names: layers.
        optimiser: of the heads' parameters.
        first: the first epoch, which also takes the statistics.
    """
    heads.begin()
    labels = source.labels[rows].to(source.device)
    for condition in conditions:

        def take(name: str, output: Tensor, condition: str = condition) -> None:
            heads.heads[name].learn(condition, output, labels, first=first)

        source.outputs(condition, rows, names, take)
    optimiser.step()


def _require_finite(heads: Heads, trainings: Sequence[Training]) -> None:
    for name, head in heads.heads.items():
        for t, training in enumerate(trainings):
            if not bool(head.running[t].squares.isfinite().all()):
                raise not_finite(name, training.name)
            if not bool(head.weights[t].isfinite().all()):
                raise UserError(
                    f"the probe of {name} ({training.name}) expects weights that stay finite; "
                    "they did not; try a smaller --lr"
                )


def _chosen(
    heads: Heads, source: Source, names: Sequence[str], trainings: Sequence[Training],
    conditions: Sequence[str], rest: Tensor, settings: Settings,
) -> dict[tuple[str, str], Linear]:  # fmt: skip
    """Of each layer and training the strength that is best on the validation part."""
    strengths = len(settings.strengths)
    right = {name: torch.zeros(len(trainings), strengths, dtype=torch.int64) for name in names}
    for condition in conditions:
        for rows in rest.split(settings.batch_size):
            labels = source.labels[rows].to(source.device)

            def take(
                name: str, output: Tensor, condition: str = condition, labels: Tensor = labels
            ) -> None:
                head = heads.heads[name]
                features = head.features(output)
                for t, training in enumerate(trainings):
                    if condition in training.conditions:
                        found = head.scores(t, features).argmax(2)
                        right[name][t] += (found == labels[:, None]).sum(0).cpu()

            source.outputs(condition, rows, names, take)
    found = {}
    for name in names:
        for t, training in enumerate(trainings):
            best = max(range(strengths), key=lambda i: (int(right[name][t, i]), i))
            found[name, training.name] = heads.heads[name].probe(t, best)
    return found
