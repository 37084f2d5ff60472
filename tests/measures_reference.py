"""Every measure in float64 by its definition, from activations and other libraries' routines.

Slow, and shares nothing with repsim: no Gram matrices where repsim has them, and the reverse.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
from scipy.spatial.distance import cdist, jensenshannon, pdist, squareform
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

Array = np.ndarray


def centred(X: Array) -> Array:
    X = X.astype(np.float64)
    X = X - X[0]
    return X - X.mean(0)


def correlations(X: Array, Y: Array) -> Array:
    """Cosines of the principal angles between the column spaces."""
    return np.cos(scipy.linalg.subspace_angles(standard(X), standard(Y)))


def standard(X: Array) -> Array:
    X = centred(X)
    spread = X.std(0)
    return X[:, spread > 0] / spread[spread > 0]


def cca(X: Array, Y: Array) -> float:
    return float(correlations(X, Y).mean())


def cca_r2(X: Array, Y: Array) -> float:
    return float((correlations(X, Y) ** 2).mean())


def leading(X: Array, variance: float) -> Array:
    U, S, _ = np.linalg.svd(centred(X), full_matrices=False)
    share = np.cumsum(S**2) / (S**2).sum()
    return U[:, : np.searchsorted(share, variance) + 1]


def svcca(X: Array, Y: Array, variance: float = 0.99) -> float:
    angles = scipy.linalg.subspace_angles(leading(X, variance), leading(Y, variance))
    return float(np.cos(angles).mean())


def span(X: Array) -> Array:
    """By QR with pivoting."""
    Q, R, _ = scipy.linalg.qr(standard(X), mode="economic", pivoting=True)
    size = np.abs(np.diag(R))
    return Q[:, size > size[0] * 1e-12]


def pwcca(X: Array, Y: Array) -> float:
    Q = span(X)
    U, rho, _ = scipy.linalg.svd(Q.T @ span(Y), full_matrices=False)
    variates, features = (Q @ U).T, centred(X).T
    weights = [sum(abs(h @ x) for x in features) for h in variates]
    return float(np.average(rho, weights=weights))


def shape(X: Array, width: int) -> Array:
    X = centred(X)
    return np.pad(X, ((0, 0), (0, width - X.shape[1]))) / np.linalg.norm(X)


def procrustes(X: Array, Y: Array) -> float:
    """The distance after the best rotation, from the rotation itself."""
    width = max(X.shape[1], Y.shape[1])
    A, B = shape(X, width), shape(Y, width)
    Q, _ = scipy.linalg.orthogonal_procrustes(B, A)
    return float(np.linalg.norm(A - B @ Q))


def angular_procrustes(X: Array, Y: Array) -> float:
    return float(2 * np.arcsin(procrustes(X, Y) / 2))


def linear_regression(X: Array, Y: Array) -> float:
    inputs, targets = standard(Y), centred(X)
    fitted = LinearRegression().fit(inputs, targets).predict(inputs)
    return float(r2_score(targets, fitted, multioutput="variance_weighted"))


def rsa(X: Array, Y: Array) -> float:
    return float(pearsonr(pdist(centred(X)), pdist(centred(Y)))[0])


def rsa_spearman(X: Array, Y: Array) -> float:
    return float(spearmanr(pdist(centred(X)), pdist(centred(Y)))[0])


def rsa_cosine(X: Array, Y: Array) -> float:
    a, b = pdist(centred(X)), pdist(centred(Y))
    return float(a @ b / np.sqrt(a @ a * (b @ b)))


def nearest(nearness: Array, k: int) -> list[list[int]]:
    """Neighbours of each, the first of equally near ones first."""
    n = len(nearness)
    return [
        sorted((j for j in range(n) if j != i), key=lambda j: (-nearness[i, j], j))[:k]
        for i in range(n)
    ]


def cosine(X: Array) -> Array:
    X = centred(X)
    # By einsum, which takes equal rows to equal numbers, as a matrix product need not.
    norms = np.sqrt(np.einsum("if,if->i", X, X))
    return np.einsum("if,jf->ij", X, X) / np.outer(norms, norms)


def mutual_knn(X: Array, Y: Array, k: int = 10, metric: str = "cosine") -> float:
    a, b = sets(X, k, metric), sets(Y, k, metric)
    return float(np.mean([len(x & y) / k for x, y in zip(a, b, strict=True)]))


def jaccard(X: Array, Y: Array, k: int = 10, metric: str = "cosine") -> float:
    a, b = sets(X, k, metric), sets(Y, k, metric)
    return float(np.mean([len(x & y) / len(x | y) for x, y in zip(a, b, strict=True)]))


def sets(X: Array, k: int, metric: str) -> list[set[int]]:
    near = cosine(X) if metric == "cosine" else -cdist(centred(X), centred(X))
    return [set(row) for row in nearest(near, k)]


def cknna(X: Array, Y: Array, k: int = 10) -> float:
    """Huh et al.'s, with full matrices; of the two orders of the pair the mean."""
    n = len(X)
    kernels = [cosine(X), cosine(Y)]
    masks = []
    for K in kernels:
        mask = np.zeros((n, n))
        for i, near in enumerate(nearest(K, k)):
            mask[i, near] = 1
        masks.append(mask)

    def local(a: int, b: int) -> float:
        both = masks[a] * masks[b]
        K, L = both * kernels[a], both * kernels[b]
        one = np.ones(n)
        total = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return float(np.trace(K @ L) + total - 2 / (n - 2) * (one @ K @ L @ one))

    return float((local(0, 1) + local(1, 0)) / 2 / np.sqrt(local(0, 0) * local(1, 1)))


def distance_correlation(X: Array, Y: Array) -> float:
    n = len(X)
    H = np.eye(n) - 1 / n
    A, B = (H @ squareform(pdist(centred(Z))) @ H for Z in (X, Y))
    return float(np.sqrt((A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum())))


def debiased_distance_correlation(X: Array, Y: Array) -> float:
    """With the U-centred matrices of Székely and Rizzo 2014, entry by entry."""
    n, both = len(X), []
    for Z in (X, Y):
        a = squareform(pdist(centred(Z)))
        rows, columns, total = a.sum(1), a.sum(0), a.sum()
        A = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    A[i, j] = (
                        a[i, j] - rows[i] / (n - 2) - columns[j] / (n - 2)
                        + total / ((n - 1) * (n - 2))
                    )  # fmt: skip
        both.append(A)
    A, B = both
    return float((A * B).sum() / np.sqrt((A * A).sum() * (B * B).sum()))


def disagreement(X: Array, Y: Array) -> float:
    return float(np.mean(X.argmax(1) != Y.argmax(1)))


def jensen_shannon(X: Array, Y: Array) -> float:
    p, q = softmax(X.astype(np.float64), axis=1), softmax(Y.astype(np.float64), axis=1)
    return float(np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)]))


REFERENCES: dict[str, Callable[[Array, Array], float]] = {
    "cca": cca,
    "cca-r2": cca_r2,
    "svcca": svcca,
    "pwcca": pwcca,
    "procrustes": procrustes,
    "angular-procrustes": angular_procrustes,
    "linear-regression": linear_regression,
    "rsa": rsa,
    "rsa-spearman": rsa_spearman,
    "rsa-cosine": rsa_cosine,
    "mutual-knn": mutual_knn,
    "jaccard": jaccard,
    "cknna": cknna,
    "distance-correlation": distance_correlation,
    "distance-correlation-debiased": debiased_distance_correlation,
    "disagreement": disagreement,
    "jensen-shannon": jensen_shannon,
}
