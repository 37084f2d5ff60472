"""CKA and HSIC of two arrays."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repsim.similarity.estimate import cka_pairs, hsic_pairs
from repsim.similarity.representation import ArrayRepresentation, Representation


def cka(
    X: Any,
    Y: Any,
    *,
    kernel: str = "linear",
    estimator: str = "debiased",
    batch_size: int | None = None,
) -> float:
    """Centred kernel alignment of two representations of the same samples.

    Args:
        X: (samples, features...) numpy or torch.
        Y: (samples, other features...), the same samples in the same order.
        kernel: `linear`, `rbf` or `rbf:FRACTION` of the median distance.
        estimator: `debiased`, `biased` (Kornblith et al. 2019) or `minibatch` (Nguyen et al. 2021).
        batch_size: for minibatch.

    Returns:
        HSIC(K, L)/√(HSIC(K, K)·HSIC(L, L)); 1 for itself, near 0 for unrelated ones (below 0 too:
        it is not clamped), nan if one does not vary.

    Raises:
        UserError: numbers of samples that differ or are too small, or NaN or infinity.
    """
    pairs = cka_pairs(
        _both(X, Y), kernel=kernel, estimator=estimator, batch_size=batch_size,
        groups=1, device=_device(X),
    )  # fmt: skip
    return float(pairs.value[0, 1])


def hsic(
    X: Any,
    Y: Any,
    *,
    kernel: str = "linear",
    estimator: str = "debiased",
    batch_size: int | None = None,
) -> float:
    """Hilbert-Schmidt independence criterion; arguments and errors as in `cka`."""
    pairs = hsic_pairs(
        _both(X, Y), kernel=kernel, estimator=estimator, batch_size=batch_size,
        groups=1, device=_device(X),
    )  # fmt: skip
    return float(pairs.value[0, 1])


def _both(X: Any, Y: Any) -> list[Representation]:
    return [
        ArrayRepresentation.from_array(X, layer="X"),
        ArrayRepresentation.from_array(Y, layer="Y"),
    ]


def _device(X: Any) -> str:
    return str(X.device) if isinstance(X, Tensor) else "cpu"
