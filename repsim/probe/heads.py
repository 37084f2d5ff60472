"""The probes that are trained by steps: all of a layer together, and those of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim.probe.classifiers import Linear
from repsim.probe.layout import Layout
from repsim.probe.pieces import Room, pieces
from repsim.probe.reduce import Reduction
from repsim.probe.running import Running
from repsim.probe.settings import Settings, Training
from repsim.probe.source import Source


class Head:
    """All probes of one layer: for each training its own standardisation and weights.

    Features are centred a few thousand at a time while they are in the cache; their scale is put
    on the weights and on the gradient, which are smaller than the batch.

    Attributes:
        weights, slopes: (trainings, strengths·classes, used), views of all heads' parameters and
            of their gradient; features in the order of `layout`.
        biases, bias_slopes: (trainings, strengths·classes).
        layout: the features' order in memory; None before the first batch.
    """

    def __init__(
        self, reduction: Reduction, parameters: Tensor, gradient: Tensor,
        trainings: Sequence[Training], settings: Settings, classes: int, room: Room,
    ) -> None:  # fmt: skip
        outputs = len(settings.strengths) * classes
        shape = len(trainings), outputs, reduction.used
        self.weights, self.biases = _split(parameters, shape)
        self.slopes, self.bias_slopes = _split(gradient, shape)
        self.running = [Running(reduction.used, str(parameters.device)) for _ in trainings]
        self.reduction, self.trainings, self.classes = reduction, trainings, classes
        self.strengths, self.room = settings.strengths, room
        self.layout: Layout | None = None
        self.begun = [False] * len(trainings)

    def begin(self) -> None:
        """A step begins: what is in the gradient is of the last one."""
        self.begun = [False] * len(self.trainings)

    def features(self, output: Tensor) -> Tensor:
        """(batch, used) float32 of an output (batch, *shape); where it can be, a view."""
        if self.reduction.text != "flatten":
            return self.reduction(output)
        if self.layout is None:
            self.layout = Layout.of(output)
        return self.layout.rows(output).float()

    def scores(self, t: int, features: Tensor, *, first: bool = False) -> Tensor:
        """Logits (batch, strengths, classes) of training t; `first`: statistics are taken too."""
        running = self.running[t]
        # Transposed: so the product takes two thirds of the time.
        flat = self.biases[t][:, None].repeat(1, len(features))
        for part in pieces(features.shape[1], features.device):
            piece = features[:, part]
            if first:
                centred, rest = running.look(part, piece, self.room)
            else:
                centred, rest = running.centred(part, piece, self.room), None
            weights = self.weights[t, :, part] * running.scale32[part]
            flat.addmm_(weights, centred.T)
            if rest is not None:
                flat += (weights @ rest)[:, None]
        if first:
            running.count += len(features)
        return flat.T.reshape(len(features), len(self.strengths), self.classes)

    def learn(self, condition: str, output: Tensor, labels: Tensor, *, first: bool) -> None:
        """Add the gradient of a batch.

        Args:
            condition: of the images.
            output: (batch, *shape) of the layer.
            labels: int64 (batch,).
            first: the first epoch, which also takes the statistics.
        """
        features = self.features(output)
        target = F.one_hot(labels, self.classes)[:, None]
        for t, training in enumerate(self.trainings):
            if condition in training.conditions:
                residual = self.scores(t, features, first=first).softmax(2).sub_(target)
                residual /= len(labels) * len(training.conditions)
                self._descend(t, features, residual.view(len(labels), -1))

    def _descend(self, t: int, features: Tensor, residual: Tensor) -> None:
        """Add residualᵀ·standardised features.

        The first of a step writes over the last step's gradient, with that of the penalties.
        """
        running, begun = self.running[t], self.begun[t]
        for part in pieces(features.shape[1], features.device):
            slopes = residual.T @ running.centred(part, features[:, part], self.room)
            scale = running.scale32[part]
            if begun:
                self.slopes[t, :, part].addcmul_(slopes, scale)
            else:
                torch.mul(slopes, scale, out=self.slopes[t, :, part])
                self._penalise(t, part)
        if begun:
            self.bias_slopes[t] += residual.sum(0)
        else:
            torch.sum(residual, 0, out=self.bias_slopes[t])
        self.begun[t] = True

    def _penalise(self, t: int, part: slice) -> None:
        """Add the gradient of strength/2·‖W‖² to some columns."""
        for s, strength in enumerate(self.strengths):
            if strength:
                place = t, self._of_strength(s), part
                self.slopes[place].add_(self.weights[place], alpha=strength)

    def probe(self, t: int, s: int) -> Linear:
        """The probe of training t with strength s, of features in the order of `flatten`."""
        part, running = self._of_strength(s), self.running[t]
        weight, mean, scale = (
            x if self.layout is None else self.layout.flattened(x, self.reduction.shape)
            for x in (self.weights[t, part], running.mean32, running.scale32)
        )
        return Linear(
            weight.clone(), self.biases[t, part].clone(), mean.clone(), scale.clone(),
            self.strengths[s],
        )  # fmt: skip

    def _of_strength(self, s: int) -> slice:
        return slice(s * self.classes, (s + 1) * self.classes)


class Heads:
    """The heads of all layers, whose parameters are one vector with one optimiser."""

    def __init__(
        self, source: Source, names: Sequence[str], trainings: Sequence[Training], classes: int,
        settings: Settings,
    ) -> None:  # fmt: skip
        outputs = len(trainings) * len(settings.strengths) * classes
        sizes = [outputs * (source.reductions[name].used + 1) for name in names]
        self.parameters = nn.Parameter(torch.zeros(sum(sizes), device=source.device))
        self.parameters.grad = torch.zeros_like(self.parameters)
        room = Room()
        self.heads = {
            name: Head(
                source.reductions[name], parameters, gradient, trainings, settings, classes, room
            )
            for name, parameters, gradient in zip(
                names, self.parameters.data.split(sizes), self.parameters.grad.split(sizes),
                strict=True,
            )
        }  # fmt: skip

    def begin(self) -> None:
        """A step of the optimiser begins."""
        for head in self.heads.values():
            head.begin()


def _split(flat: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Weights (trainings, outputs, used) and biases (trainings, outputs): views of one vector."""
    trainings, outputs, used = shape
    weights, biases = flat.split([trainings * outputs * used, trainings * outputs])
    return weights.view(shape), biases.view(trainings, outputs)
