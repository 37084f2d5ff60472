"""What two networks say at the end: do they predict the same, and with the same confidence?"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.declaration import Declaration, Invariance
from repsim.similarity.prepared import PreparedMeasure, Undefined
from repsim.similarity.representation import Representation, describe, refuse_not_finite

LOGITS = "logits"  # the name of the layer that holds them


class _OfLogits(PreparedMeasure[Tensor, Tensor]):
    def fetch(self, one: Representation, device: torch.device) -> Tensor:
        """(n, classes) float64."""
        values = torch.from_numpy(one.rows(0, one.samples).copy()).double().to(device)
        if not bool(values.isfinite().all()):
            refuse_not_finite(one)
        return values

    def prepare(self, source: Tensor, stay: Tensor | None, samples: int) -> Tensor | Undefined:
        """Of the samples that stay."""
        return self.of_logits(source if stay is None else source[stay])

    @abstractmethod
    def of_logits(self, logits: Tensor) -> Tensor:
        """What pairs need."""

    def least(self) -> int:
        """A mean over samples."""
        return 1

    def room(self, samples: int, features: int) -> int:
        """Logits."""
        return 16 * samples * features

    def check(self, representations: list[Representation]) -> None:
        """Logits of the same classes.

        Raises:
            UserError: other layers, fewer than two classes, or other numbers of classes.
        """
        first = representations[0]
        for one in representations:
            if one.layer != LOGITS:
                raise UserError(
                    f"the measure {self.word} expects the networks' outputs, a layer named "
                    f"{LOGITS}; got {describe(one)}"
                )
            if one.features != first.features or one.features < 2:
                raise UserError(
                    f"the measure {self.word} expects logits of the same two or more classes; "
                    f"{describe(first)} has {first.features}, {describe(one)} {one.features}"
                )


@dataclass(frozen=True)
class Disagreement(_OfLogits):
    """Part of the samples for which the largest logit is of another class."""

    word = "disagreement"
    declaration = Declaration(
        "less alike", 0, 1, True,
        frozenset({
            Invariance.SCALING, Invariance.FEATURES_BOTH, Invariance.SAMPLES,
            Invariance.SAMPLE_SCALING, Invariance.SAMPLE_SHIFT, Invariance.VALUES,
        }),
        "logits", "n·classes + n", "Klabunde et al. 2023, arXiv 2305.06329",
    )  # fmt: skip

    def of_logits(self, logits: Tensor) -> Tensor:
        """The predicted classes, (n,)."""
        return logits.argmax(1)

    def between(self, x: Tensor, y: Tensor) -> float:
        """See the class."""
        return float((x != y).double().mean())


@dataclass(frozen=True)
class JensenShannon(_OfLogits):
    """Mean Jensen-Shannon divergence of the predicted probabilities, in bits.

    JSD(p, q) = ½·KL(p, m) + ½·KL(q, m) with m = (p + q)/2 and p, q the softmax of the logits.
    """

    word = "jensen-shannon"
    declaration = Declaration(
        "less alike", 0, 1, True,
        frozenset({Invariance.FEATURES_BOTH, Invariance.SAMPLES, Invariance.SAMPLE_SHIFT}),
        "logits", "n·classes + n·classes",
        "Lin 1991, doi 10.1109/18.61115; Klabunde et al. 2023, arXiv 2305.06329",
    )  # fmt: skip

    def of_logits(self, logits: Tensor) -> Tensor:
        """Logarithms of the probabilities."""
        return logits.log_softmax(1)

    def between(self, x: Tensor, y: Tensor) -> float:
        """See the class."""
        middle = torch.logaddexp(x, y) - math.log(2)
        both = x.exp() * (x - middle) + y.exp() * (y - middle)
        return float(both.sum(1).mean() / (2 * math.log(2)))


def disagreement(X: Any, Y: Any) -> float:
    """Part of the samples that X and Y put in different classes; see `Disagreement`.

    Args:
        X: (samples, classes) logits, numpy or torch.
        Y: (samples, classes) logits for the same samples in the same order.

    Returns:
        In [0, 1].

    Raises:
        UserError: other numbers of samples or classes, NaN or infinity.
    """
    return Disagreement()(X, Y)


def jensen_shannon(X: Any, Y: Any) -> float:
    """Mean Jensen-Shannon divergence in bits, in [0, 1]; arguments as in `disagreement`."""
    return JensenShannon()(X, Y)
