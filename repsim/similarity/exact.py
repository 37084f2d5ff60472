"""Activations and Gram matrices in float64, for measures that take roots of small eigenvalues.

CKA is content with float32 products. A nuclear norm, a rank, or the rank of a distance is not: an
error of 1e-7 in an eigenvalue is one of 3e-4 in a singular value.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.similarity.grams import GramRepresentation, centred_gram
from repsim.similarity.halves import self_product
from repsim.similarity.products import rounding
from repsim.similarity.representation import Representation, refuse_not_finite, unit_for

LEAST, MOST = 1e-200, 1e200  # traces beyond which products leave float64's range
# Eigenvalues this small beside the largest are rounding of a float32 Gram matrix: its error, as a
# spectral norm, is up to 3 units of rounding of the largest eigenvalue (measured, n = 200 to 1000).
COARSE_RANK = 8 * torch.finfo(torch.float32).eps
PIECE = 256 * 2**20  # bytes of activations that are taken in at once


def exact_gram(representation: Representation, device: torch.device) -> Tensor:
    """K = Xc·Xcᵀ, (n, n) float64 on the device; 0 where activations are constant up to `rounding`.

    Of a `GramRepresentation`, the float32 numbers that there are. Activations whose squares leave
    float64's range are multiplied by a power of two.

    Raises:
        UserError: activations that are not finite, naming the sample.
    """
    n, features = representation.samples, representation.features
    if isinstance(representation, GramRepresentation):
        return recentred(centred_gram(representation).double().to(device))
    height = max(1, PIECE // (8 * features))
    pieces = [slice(start, min(start + height, n)) for start in range(0, n, height)]
    read = np.asarray(representation.rows(pieces[0].start, pieces[0].stop))
    slack = rounding(torch.from_numpy(read[:1].copy()).dtype)
    some = read.astype(np.float64)
    # Any origin near the activations does: the Gram matrix is centred afterwards.
    origin = some[0] + (some - some[0]).mean(0)
    kernel, unit = _products(representation, pieces, origin, 1.0, device, some), 1.0
    trace = float(kernel.diagonal().sum())
    if not LEAST < trace < MOST:
        if not np.isfinite(origin).all():
            refuse_not_finite(representation)
        unit = unit_for(representation, origin, height)
        kernel = _products(representation, pieces, origin, unit, device, some)
        trace = float(kernel.diagonal().sum())
    if trace <= slack**2 * n * float(np.square(origin * unit).sum()):
        return kernel.zero_()
    return recentred(kernel)


def _products(
    representation: Representation,
    pieces: list[slice],
    origin: NDArray[np.float64],
    unit: float,
    device: torch.device,
    some: NDArray[np.float64],
) -> Tensor:
    """Inner products (n, n) float64 of unit·(activations - origin), read in pieces.

    Args:
        representation: n samples.
        pieces: of the samples.
        origin: (features,)
        unit: a factor.
        device: where the products are made.
        some: the first piece, which has been read.
    """

    def shifted(piece: slice) -> Tensor:
        known = piece == pieces[0]
        values = (some if known else representation.rows(piece.start, piece.stop)) - origin
        return torch.from_numpy(values if unit == 1 else values * unit).to(device)

    n = representation.samples
    kernel = torch.empty(n, n, dtype=torch.float64, device=device)
    for i, first in enumerate(pieces):
        left = shifted(first)
        kernel[first, first] = self_product(left)
        for second in pieces[i + 1 :]:
            block = left @ shifted(second).T
            kernel[first, second], kernel[second, first] = block, block.T
    return kernel


def exact_rows(representation: Representation, device: torch.device) -> Tensor:
    """All activations minus their mean over samples, (n, features) float64 on the device.

    Columns that are constant up to `rounding` are 0. Activations whose squares leave float64's
    range are multiplied by a power of two.

    Raises:
        UserError: activations that are not finite, or a representation that has none.
    """
    values = representation.rows(0, representation.samples)
    slack = rounding(torch.from_numpy(values[:1].copy()).dtype)
    found = torch.from_numpy(np.array(values, dtype=np.float64)).to(device)
    if not bool(found.isfinite().all()):
        refuse_not_finite(representation)
    moved = centred(found)
    size = float(moved.abs().max())
    if size and not LEAST < size**2 < MOST:
        unit = unit_for(representation, found.mean(0).cpu().numpy(), representation.samples)
        moved, found = moved * unit, found * unit
    spread = torch.linalg.vector_norm(moved, dim=0)
    level = torch.linalg.vector_norm(found, dim=0)
    return moved.masked_fill_(spread <= slack * level, 0)


def centred(values: Tensor) -> Tensor:
    """(n, features) minus their mean; a constant column becomes exactly 0, whatever its size."""
    moved = values - values[0]
    return moved - moved.mean(0)


def recentred(kernel: Tensor) -> Tensor:
    """H·K·H with H = 1 - 11ᵀ/n."""
    rows = kernel.mean(1)
    shift = rows - rows.mean() / 2
    return kernel - (shift[:, None] + shift[None, :])


def rank_floor(sizes: Tensor, coarse: bool) -> Tensor:
    """The eigenvalue of a Gram matrix up to which one is rounding.

    Args:
        sizes: (n,) all eigenvalues.
        coarse: the matrix holds float32 numbers.
    """
    return sizes.max() * (COARSE_RANK if coarse else len(sizes) * torch.finfo(sizes.dtype).eps)


def nuclear_norm(matrix: Tensor) -> float:
    """The sum of the singular values, to 1e-8 of it and of what it lacks to 1.

    The roots of the eigenvalues of M·Mᵀ take half the time, and are taken where none is so small
    that squaring it has lost it.
    """
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares = torch.linalg.eigvalsh(small @ small.T)
    lost = 8 * torch.finfo(squares.dtype).eps * squares[-1]
    sizes = squares.clamp(min=0).sqrt()
    total = float(sizes.sum())
    error = float((lost / sizes.clamp(min=float(lost.sqrt()))).sum()) / 2
    if error <= 1e-8 * min(total, abs(1 - total)):
        return total
    return float(torch.linalg.svdvals(small).sum())
