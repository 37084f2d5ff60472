"""Similarity of representations: pure functions of arrays, and engines for all pairs at once.

    from repsim.similarity import cka, svcca
    cka(X, Y)                      # (samples, features...) numpy or torch
    svcca(X, Y, variance=0.9)

`MEASURES` are those known by name; each says in its `declaration` what leaves it unchanged, what
larger means, and what it costs. A measure of one's own is a function (X, Y) -> float.
"""

from __future__ import annotations

from repsim.similarity.canonical import cca, cca_r2, pwcca, svcca
from repsim.similarity.declaration import Declaration, Invariance
from repsim.similarity.dissimilarity import rsa
from repsim.similarity.distances import distance_correlation
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
from repsim.similarity.neighbours import cknna, jaccard, mutual_knn
from repsim.similarity.orthogonal import angular_procrustes, procrustes
from repsim.similarity.predictions import disagreement, jensen_shannon
from repsim.similarity.regression import linear_regression
from repsim.similarity.representation import ArrayRepresentation, Representation
from repsim.similarity.sums import Sums
from repsim.similarity.table import KNOWN, MEASURES, needs, parse_measure

__all__ = [
    "CKA",
    "ESTIMATORS",
    "KERNELS",
    "KNOWN",
    "MEASURES",
    "MEMORY",
    "ArrayRepresentation",
    "Declaration",
    "Invariance",
    "Measure",
    "Pairs",
    "Pairwise",
    "Representation",
    "Sums",
    "angular_procrustes",
    "cca",
    "cca_r2",
    "cka",
    "cka_pairs",
    "cknna",
    "disagreement",
    "distance_correlation",
    "hsic",
    "hsic_pairs",
    "interval",
    "jaccard",
    "jensen_shannon",
    "linear_regression",
    "mutual_knn",
    "needs",
    "parse_measure",
    "procrustes",
    "pwcca",
    "rsa",
    "similarity_sums",
    "standard_error",
    "svcca",
]
