"""What a measure says of itself: what leaves it unchanged, what larger means, what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Invariance(StrEnum):
    """What may be done to a representation X (samples, features) without a change of the measure.

    Done to either side alone, except where both are named. Z' is Z after the change.
    """

    ORTHOGONAL = "orthogonal"  # X Q, Q Qᵀ = 1
    SCALING = "isotropic scaling"  # a X, a > 0
    LINEAR = "invertible linear"  # X A, A invertible
    LINEAR_Y = "invertible linear of Y"  # Y A: only of the second
    TRANSLATION = "translation"  # X + 1 bᵀ
    FEATURES = "permutation of features"  # X P
    FEATURES_BOTH = "permutation of features of both"  # X P and Y P
    SAMPLES = "permutation of samples of both"  # P X and P Y
    SAMPLE_SCALING = "scaling of each sample"  # D X, D diagonal and positive
    SAMPLE_SHIFT = "shift of each sample"  # X + c 1ᵀ
    DISTANCES = "monotone function of the distances"  # |x'_i - x'_j| = g(|x_i - x_j|)
    VALUES = "monotone function of the values"  # x'_ij = g(x_ij), one increasing g


# Rotations and reflections, what they include, and what centring and normalising add: the classes
# of Kornblith et al. 2019, section 2, and of Klabunde et al. 2023, table 1.
RIGID = frozenset({
    Invariance.ORTHOGONAL, Invariance.SCALING, Invariance.TRANSLATION, Invariance.FEATURES,
    Invariance.FEATURES_BOTH, Invariance.SAMPLES,
})  # fmt: skip

_IMPLIED = {
    Invariance.ORTHOGONAL: {Invariance.FEATURES, Invariance.FEATURES_BOTH},
    Invariance.LINEAR: {
        Invariance.ORTHOGONAL, Invariance.SCALING, Invariance.FEATURES, Invariance.FEATURES_BOTH,
        Invariance.LINEAR_Y,
    },
    Invariance.FEATURES: {Invariance.FEATURES_BOTH},
    Invariance.VALUES: {Invariance.SCALING},
    Invariance.SAMPLE_SCALING: {Invariance.SCALING},
}  # fmt: skip

Need = Literal["gram", "activations", "logits"]


@dataclass(frozen=True)
class Declaration:
    """What a reader of a measure's numbers has to know.

    Attributes:
        larger: what a larger value means.
        low: the least value that there can be; of the whole set of values, not of unrelated ones.
        high: the largest.
        symmetric: whether (X, Y) and (Y, X) have the same value.
        invariant: everything in `Invariance` that leaves the value unchanged.
        needs: gram: inner products of the samples are enough; activations; logits: it compares
            predictions, not layers.
        cost: multiplications and additions for n samples, p and q features, once for each of the
            representations + for each pair.
        source: paper with arXiv number.
    """

    larger: Literal["more alike", "less alike"]
    low: float
    high: float
    symmetric: bool
    invariant: frozenset[Invariance]
    needs: Need
    cost: str
    source: str

    @property
    def strongest(self) -> list[Invariance]:
        """The invariances from which the others follow, in the order of `Invariance`."""
        implied = {other for one in self.invariant for other in _IMPLIED.get(one, ())}
        return [one for one in Invariance if one in self.invariant - implied]
