"""CKA in float64 by its definition, with centring matrices: slow, shares nothing with repsim."""

from __future__ import annotations

import numpy as np


def gram(X: np.ndarray, kernel: str = "linear") -> np.ndarray:
    X = X.astype(np.float64).reshape(len(X), -1)
    if kernel == "linear":
        X = X - X.mean(0)
        return X @ X.T
    fraction = float(kernel.partition(":")[2])
    n = len(X)
    distance = np.array([[np.sqrt(((x - y) ** 2).sum()) for y in X] for x in X])
    sigma = fraction * np.median(distance[np.triu_indices(n, 1)])
    return np.exp(-(distance**2) / (2 * sigma**2))


def hsic(K: np.ndarray, L: np.ndarray, estimator: str = "debiased") -> float:
    n = len(K)
    if estimator == "biased":
        H = np.eye(n) - np.ones((n, n)) / n
        return float(np.trace(K @ H @ L @ H) / (n - 1) ** 2)
    K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(n)
    total = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (one @ K @ L @ one)
    return float((np.trace(K @ L) + total - cross) / (n * (n - 3)))


def cka(X: np.ndarray, Y: np.ndarray, estimator: str = "debiased", kernel: str = "linear") -> float:
    K, L = gram(X, kernel), gram(Y, kernel)
    return hsic(K, L, estimator) / np.sqrt(hsic(K, K, estimator) * hsic(L, L, estimator))


def minibatch_cka(X: np.ndarray, Y: np.ndarray, size: int) -> float:
    sums = np.zeros(3)
    for start in range(0, len(X) - size + 1, size):
        K, L = gram(X[start : start + size]), gram(Y[start : start + size])
        sums += [hsic(K, L), hsic(K, K), hsic(L, L)]
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))
