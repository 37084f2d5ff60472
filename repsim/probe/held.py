"""Probes from features that are held: multinomial logistic regression, nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repsim.errors import UserError
from repsim.probe.classifiers import Linear, Neighbours, inverse_deviation, votes
from repsim.probe.lbfgs import lbfgs
from repsim.probe.settings import Settings


def standardise(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(features - mean)·scale, mean and scale (used,), of features (n, used) in place of them."""
    mean = features.mean(0, dtype=torch.float64)
    # Of one dimension at a time, or a copy in float64 of all features would be made.
    shifted = features - mean.float()
    offset = shifted.mean(0, dtype=torch.float64)  # what float32 has left of the mean
    variance = shifted.square_().mean(0, dtype=torch.float64) - offset**2
    scale = inverse_deviation(mean, variance).float()
    mean32 = mean.float()
    return (features - mean32).mul_(scale), mean32, scale


def fit_logistic(
    features: Tensor, labels: Tensor, held_out: Tensor, classes: int, settings: Settings
) -> Linear:
    """Multinomial logistic regression, whose objective `Settings.strengths` states.

    The strength with the most validation images right is chosen, of several the largest; W is then
    found again on all images.

    Args:
        features: (n, used) float32.
        labels: int64 (n,).
        held_out: bool (n,), the validation part.
        classes: number of classes.
        settings: strengths.
    """
    z, mean, scale = standardise(features[~held_out])
    y = labels[~held_out]
    start: tuple[Tensor, Tensor] | None = None
    best: Linear | None = None
    most = -1
    # From the strongest, whose minimum is nearest to 0, each starting where the last one ended.
    for strength in reversed(settings.strengths):
        start = minimise(z, y, classes, strength, start)
        found = Linear(*start, mean, scale, strength)
        right = int((found.scores(features[held_out]).argmax(1) == labels[held_out]).sum())
        if right > most:
            best, most = found, right
    assert best is not None
    z, mean, scale = standardise(features)
    weight, bias = minimise(z, labels, classes, best.strength, (best.weight, best.bias))
    return Linear(weight, bias, mean, scale, best.strength)


def minimise(
    z: Tensor, labels: Tensor, classes: int, strength: float,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """W (classes, used) and b (classes,) of one strength, by L-BFGS.

    Args:
        z: (n, used) float32.
        labels: int64 (n,).
        classes: number of classes.
        strength: of the penalty; above 0.
        start: where to begin; 0 by default.
    """
    n, used = z.shape
    weight, bias = start or (z.new_zeros(classes, used), z.new_zeros(classes))
    target = F.one_hot(labels, classes).float()

    def loss(parameters: Tensor) -> tuple[float, Tensor]:
        """Value and gradient (classes·(used + 1),)."""
        w, b = parameters[: classes * used].view(classes, used), parameters[classes * used :]
        logits = torch.addmm(b, z, w.T)
        value = F.cross_entropy(logits, labels) + strength / 2 * w.square().sum()
        residual = logits.softmax(1).sub_(target).div_(n)
        slope = torch.addmm(w, residual.T, z, beta=strength)
        return float(value), torch.cat([slope.flatten(), residual.sum(0)])

    found = lbfgs(loss, torch.cat([weight.flatten(), bias]))
    return found[: classes * used].view(classes, used), found[classes * used :]


def fit_neighbours(
    features: Tensor, labels: Tensor, held_out: Tensor, classes: int, settings: Settings
) -> Neighbours:
    """Nearest neighbours, k chosen on the validation part (of several the largest).

    Args:
        features: (n, used) float32; of all images, which then are the neighbours.
        labels: int64 (n,).
        held_out: bool (n,).
        classes: number of classes.
        settings: strengths are the numbers of neighbours.

    Raises:
        UserError: fewer training images than every k.
    """
    z, mean, scale = standardise(features[~held_out])
    known = [int(k) for k in settings.strengths if k <= len(z)]
    if not known:
        raise UserError(
            f"knn expects at least as many training images as neighbours, {settings.strengths[0]:g}"
            f"; got {len(z)}; give more images or smaller --strengths"
        )
    trial = Neighbours(z, labels[~held_out], mean, scale, classes, known[0])
    near = torch.cat([trial.nearest(part, known[-1]) for part in features[held_out].split(1024)])
    right = [int((votes(near[:, :k], classes).argmax(1) == labels[held_out]).sum()) for k in known]
    best = max(range(len(known)), key=lambda i: (right[i], known[i]))
    z, mean, scale = standardise(features)
    return Neighbours(z, labels, mean, scale, classes, float(known[best]))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another; itself where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
