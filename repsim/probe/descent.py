"""Probes of all layers by steps on batches: one forward a batch feeds every head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.keyed import keyed_bits
from repsim.optim import make_optimizer, make_schedule
from repsim.probe.classifiers import Linear, inverse_deviation
from repsim.probe.settings import Settings, Training
from repsim.probe.source import Source, not_finite
from repsim.progress import Progress

_STREAM = 0x65706F6368  # of the order of an epoch


class Running:
    """Mean and variance of features that come in batches (Chan, Golub and LeVeque 1983)."""

    def __init__(self, features: int, device: str) -> None:
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64, device=device)
        self.squares = torch.zeros(features, dtype=torch.float64, device=device)
        self.mean32 = torch.zeros(features, device=device)
        self.scale32 = torch.zeros(features, device=device)

    def add(self, features: Tensor) -> None:
        """A batch (batch, features)."""
        new = len(features)
        mean32 = features.mean(0)
        squares = (features - mean32).square_().sum(0)
        difference = mean32.double() - self.mean
        total = self.count + new
        self.mean += difference * (new / total)
        self.squares += squares.double() + difference**2 * (self.count * new / total)
        self.count = total
        # Length about 1 instead of deviation 1: one learning rate then fits layers of any width.
        scale = inverse_deviation(self.mean, self.squares / total) / len(mean32) ** 0.5
        self.mean32, self.scale32 = self.mean.float(), scale.float()


class Head:
    """All probes of one layer: for each training its own standardisation and weights.

    Attributes:
        weights, slopes: (trainings, strengths·classes, used), views of all heads' parameters and
            of their gradient.
        biases, bias_slopes: (trainings, strengths·classes).
    """

    def __init__(
        self, used: int, weights: Tensor, biases: Tensor, slopes: Tensor, bias_slopes: Tensor,
        trainings: Sequence[Training], strengths: Sequence[float], classes: int, device: str,
    ) -> None:  # fmt: skip
        self.weights, self.biases = weights, biases
        self.slopes, self.bias_slopes = slopes, bias_slopes
        self.running = [Running(used, device) for _ in trainings]
        self.trainings, self.strengths, self.classes = trainings, strengths, classes

    def standard(self, t: int, features: Tensor) -> Tensor:
        """Features (batch, used) as training t standardises them."""
        running = self.running[t]
        return (features - running.mean32).mul_(running.scale32)

    def scores(self, t: int, features: Tensor) -> Tensor:
        """Logits (batch, strengths, classes)."""
        flat = torch.addmm(self.biases[t], self.standard(t, features), self.weights[t].T)
        return flat.view(len(features), len(self.strengths), self.classes)

    def learn(self, condition: str, features: Tensor, labels: Tensor, *, first: bool) -> None:
        """Add the gradient of a batch (batch, used) under a condition; `first`: the first epoch."""
        for t, training in enumerate(self.trainings):
            if condition not in training.conditions:
                continue
            if first:
                self.running[t].add(features)
            z = self.standard(t, features)
            logits = torch.addmm(self.biases[t], z, self.weights[t].T)
            rows = logits.view(len(z), len(self.strengths), self.classes)
            residual = rows.softmax(2)
            residual.sub_(F.one_hot(labels, self.classes)[:, None])
            residual /= len(z) * len(training.conditions)
            flat = residual.view(len(z), -1)
            self.slopes[t].addmm_(flat.T, z)
            self.bias_slopes[t] += flat.sum(0)

    def penalise(self) -> None:
        """Add the gradient of strength/2·‖W‖²."""
        for s, strength in enumerate(self.strengths):
            if strength:
                part = slice(s * self.classes, (s + 1) * self.classes)
                self.slopes[:, part].add_(self.weights[:, part], alpha=strength)


class Heads:
    """The heads of all layers, whose parameters are one vector with one optimiser."""

    def __init__(
        self, source: Source, names: Sequence[str], trainings: Sequence[Training], classes: int,
        settings: Settings,
    ) -> None:  # fmt: skip
        outputs = len(settings.strengths) * classes
        rows = len(trainings)
        used = {name: source.reductions[name].used for name in names}
        total = sum(rows * outputs * (d + 1) for d in used.values())
        self.parameters = nn.Parameter(torch.zeros(total, device=source.device))
        self.parameters.grad = torch.zeros_like(self.parameters)
        self.heads: dict[str, Head] = {}
        start = 0
        for name, d in used.items():
            middle, stop = start + rows * outputs * d, start + rows * outputs * (d + 1)
            weights, slopes = (
                flat[start:middle].view(rows, outputs, d)
                for flat in (self.parameters.data, self.parameters.grad)
            )
            biases, bias_slopes = (
                flat[middle:stop].view(rows, outputs)
                for flat in (self.parameters.data, self.parameters.grad)
            )
            self.heads[name] = Head(
                d, weights, biases, slopes, bias_slopes, trainings, settings.strengths, classes,
                source.device,
            )  # fmt: skip
            start = stop

    def begin(self) -> None:
        """A step of the optimiser begins."""
        assert self.parameters.grad is not None
        self.parameters.grad.zero_()


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


def fit_descent(
    source: Source, names: Sequence[str], trainings: Sequence[Training], held_out: Tensor,
    classes: int, settings: Settings, progress: Progress,
) -> dict[tuple[str, str], Linear]:  # fmt: skip
    """Probes of all layers by (layer, training), by SGD or Adam on cross-entropy.

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
    optimiser = make_optimizer([heads.parameters], name=settings.solver, lr=settings.lr)
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
        source: features.
        conditions: that any training sees.
        rows: of the batch.
        names: layers.
        optimiser: of the heads' parameters.
        first: the first epoch, which also takes the statistics.
    """
    heads.begin()
    labels = source.labels[rows].to(source.device)
    for condition in conditions:

        def take(name: str, features: Tensor, condition: str = condition) -> None:
            heads.heads[name].learn(condition, features, labels, first=first)

        source.feed(condition, rows, names, take)
    for head in heads.heads.values():
        head.penalise()
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
                name: str, features: Tensor, condition: str = condition, labels: Tensor = labels
            ) -> None:
                for t, training in enumerate(trainings):
                    if condition in training.conditions:
                        found = heads.heads[name].scores(t, features).argmax(2)
                        right[name][t] += (found == labels[:, None]).sum(0).cpu()

            source.feed(condition, rows, names, take)
    found = {}
    for name in names:
        head = heads.heads[name]
        for t, training in enumerate(trainings):
            s = max(range(strengths), key=lambda i: (int(right[name][t, i]), i))
            part = slice(s * head.classes, (s + 1) * head.classes)
            found[name, training.name] = Linear(
                head.weights[t, part].clone(), head.biases[t, part].clone(),
                head.running[t].mean32, head.running[t].scale32, settings.strengths[s],
            )  # fmt: skip
    return found
