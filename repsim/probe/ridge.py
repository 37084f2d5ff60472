"""Least squares on one-hot labels: exact from sums over images, every strength from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from repsim.errors import UserError
from repsim.probe.classifiers import Linear, inverse_deviation
from repsim.probe.moments import Moments, Origin
from repsim.probe.settings import Settings


class RidgeLayer:
    """One layer under one condition: what is kept of its training and its validation images.

    Of fewer images than features the images themselves are kept, else sums of their products:
    the smaller of the two.
    """

    def __init__(self, origin: Origin, classes: int, *, keep: bool) -> None:
        self.moments = None if keep else Moments(origin, classes)
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.held_out: list[tuple[Tensor, Tensor]] = []
        self.classes = classes

    def add(self, features: Tensor, labels: Tensor, held_out: Tensor) -> None:
        """A batch: features (batch, used), labels int64 and held_out bool (batch,)."""
        self.held_out.append((features[held_out], labels[held_out]))
        features, labels = features[~held_out], labels[~held_out]
        if self.moments is None:
            self.rows.append((features, labels))
        else:
            self.moments.add(features, labels)

    @property
    def finite(self) -> bool:
        """Whether no feature was NaN or infinite."""
        rows = [*self.rows, *self.held_out]
        return (self.moments is None or self.moments.finite) and all(
            bool(x.isfinite().all()) for x, _ in rows
        )


def fit_ridge(layers: Sequence[RidgeLayer], settings: Settings) -> Linear:
    """Ridge regression on one-hot labels, whose objective `Settings.strengths` states.

    The strength with the most validation images right is chosen, of several the largest; W is then
    found again on training and validation images together.

    Scores are then made as sharp as fits the validation labels (`_sharpness`).

    Args:
        layers: those of the conditions that the probe is trained on, of one layer.
        settings: strengths.

    Raises:
        UserError: no strength is large enough for the equations to be solved.
    """
    x, y = _joined([pair for one in layers for pair in one.held_out])
    solve = _primal if layers[0].moments is not None else _dual
    chosen, most = None, -1
    for found in solve(layers, settings.strengths, with_held_out=False):
        right = int((found.scores(x).argmax(1) == y).sum())
        if right >= most:
            chosen, most = found, right
    if chosen is None:
        raise UserError(
            f"--strengths {', '.join(f'{s:g}' for s in settings.strengths)} expects one that "
            "makes the features' correlations solvable; try a larger one"
        )
    sharpness = _sharpness(chosen.scores(x), y)
    again = solve(layers, [chosen.strength], with_held_out=True)
    found = again[0] if again else chosen
    return replace(found, weight=found.weight * sharpness, bias=found.bias * sharpness)


def _sharpness(scores: Tensor, labels: Tensor) -> float:
    """The factor with the smallest cross-entropy of scores (n, classes), among powers of √2.

    Least squares puts scores between 0 and 1, of which softmax is nearly uniform: an attack on
    cross-entropy would then push all other classes up at once. Of scores that are all right the
    sharpest would win, whose softmax has no gradient at all. Either would make an attack look
    weak, so that labels are smoothed by 0.1. No prediction changes.
    """
    factors = [2 ** (k / 2) for k in range(-4, 21)]
    losses = [F.cross_entropy(scores * f, labels, label_smoothing=0.1) for f in factors]
    return factors[int(torch.stack(losses).argmin())]


def _primal(
    layers: Sequence[RidgeLayer], strengths: Sequence[float], *, with_held_out: bool
) -> list[Linear]:
    total: Moments | None = None
    for one in layers:
        assert one.moments is not None
        total = one.moments if total is None else total + one.moments
    assert total is not None
    if with_held_out:
        more = Moments(total.origin, len(total.counts))
        more.add(*_joined([pair for one in layers for pair in one.held_out]))
        total = total + more
    known = total.standardised()
    found = []
    for strength in strengths:
        matrix = known.correlation.clone()
        matrix.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed) == 0:
            weight = torch.cholesky_solve(known.cross, factor).T
            found.append(_linear(weight, known.priors, known.mean, known.scale, strength))
    return found


def _dual(
    layers: Sequence[RidgeLayer], strengths: Sequence[float], *, with_held_out: bool
) -> list[Linear]:
    """(ZᵀZ/n + s)⁻¹ ZᵀY/n = Zᵀ(ZZᵀ/n + s)⁻¹ Y/n, which needs n × n only."""
    rows = [pair for one in layers for pair in one.rows]
    if with_held_out:
        rows += [pair for one in layers for pair in one.held_out]
    x, labels = _joined(rows)
    n, values = len(x), x.double()
    y = F.one_hot(labels, layers[0].classes).double()
    mean, priors = values.mean(0), y.mean(0)
    variance = (values - mean).square().mean(0)
    scale = inverse_deviation(mean, variance)
    z = (values - mean) * scale
    gram = z @ z.T / n
    found = []
    for strength in strengths:
        matrix = gram.clone()
        matrix.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed) == 0:
            weight = (z.T @ torch.cholesky_solve(y - priors, factor) / n).T
            found.append(_linear(weight, priors, mean, scale, strength))
    return found


def _linear(weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, strength: float) -> Linear:
    return Linear(weight.float().contiguous(), bias.float(), mean.float(), scale.float(), strength)


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
