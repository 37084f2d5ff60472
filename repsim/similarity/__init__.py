"""Similarity of representations: pure functions of arrays, and engines for all pairs at once.

    from repsim.similarity import cka
    cka(X, Y)                      # (samples, features...) numpy or torch

`MEASURES` are those known by name. A measure of one's own is a function (X, Y) -> float.
"""

from __future__ import annotations

from repsim.similarity.estimate import (
    ESTIMATORS,
    MEMORY,
    Pairs,
    cka_pairs,
    hsic_pairs,
    similarity_sums,
)
from repsim.similarity.functional import cka, hsic
from repsim.similarity.jackknife import interval, standard_error
from repsim.similarity.kernels import KERNELS
from repsim.similarity.measure import CKA, Measure, Pairwise
from repsim.similarity.representation import ArrayRepresentation, Representation
from repsim.similarity.sums import Sums

MEASURES: dict[str, Measure] = {"cka": CKA()}

__all__ = [
    "CKA",
    "ESTIMATORS",
    "KERNELS",
    "MEASURES",
    "MEMORY",
    "ArrayRepresentation",
    "Measure",
    "Pairs",
    "Pairwise",
    "Representation",
    "Sums",
    "cka",
    "cka_pairs",
    "hsic",
    "hsic_pairs",
    "interval",
    "similarity_sums",
    "standard_error",
]
