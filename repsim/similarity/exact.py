"""Activations and Gram matrices in float64, for measures that take roots of small eigenvalues.

CKA is content with float32 products. A nuclear norm, a rank, or the rank of a distance is not: an
error of 1e-7 in an eigenvalue is one of 3e-4 in a singular value.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim.errors import UserError
from repsim.similarity.grams import GramRepresentation, centred_gram
from repsim.similarity.representation import Representation, describe

PIECE = 256 * 2**20  # bytes of activations that are taken in at once


def exact_gram(representation: Representation, device: torch.device) -> Tensor:
    """K = Xc·Xcᵀ, (n, n) float64 on the device, exactly 0 where activations are constant.

    Of a `GramRepresentation`, the float32 numbers that there are.

    Raises:
        UserError: activations that are not finite, naming the sample.
    """
    n, features = representation.samples, representation.features
    if isinstance(representation, GramRepresentation):
        return recentred(centred_gram(representation).double().to(device))
    height = max(1, PIECE // (8 * features))
    pieces = [slice(start, min(start + height, n)) for start in range(0, n, height)]
    origin: NDArray[np.float64] | None = None

    def shifted(piece: slice) -> Tensor:
        # Any origin near the activations does: the Gram matrix is centred afterwards.
        nonlocal origin
        values = np.asarray(representation.rows(piece.start, piece.stop), dtype=np.float64)
        if origin is None:
            origin = values[0] + (values - values[0]).mean(0)
        return torch.from_numpy(values - origin).to(device)

    kernel = torch.empty(n, n, dtype=torch.float64, device=device)
    for i, first in enumerate(pieces):
        left = shifted(first)
        kernel[first, first] = _with_itself(left)
        for second in pieces[i + 1 :]:
            block = left @ shifted(second).T
            kernel[first, second], kernel[second, first] = block, block.T
    if not bool(kernel.diagonal().isfinite().all()):
        refuse_not_finite(representation)
    return recentred(kernel)


def exact_rows(representation: Representation, device: torch.device) -> Tensor:
    """All activations minus their mean over samples, (n, features) float64 on the device.

    Raises:
        UserError: activations that are not finite, or a representation that has none.
    """
    values = representation.rows(0, representation.samples)
    found = torch.from_numpy(np.array(values, dtype=np.float64)).to(device)
    if not bool(found.isfinite().all()):
        refuse_not_finite(representation)
    return centred(found)


def centred(values: Tensor) -> Tensor:
    """(n, features) minus their mean; a constant column becomes exactly 0, whatever its size."""
    moved = values - values[0]
    return moved - moved.mean(0)


def recentred(kernel: Tensor) -> Tensor:
    """H·K·H with H = 1 - 11ᵀ/n."""
    rows = kernel.mean(1)
    shift = rows - rows.mean() / 2
    return kernel - (shift[:, None] + shift[None, :])


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


def refuse_not_finite(representation: Representation) -> None:
    """Name the first sample with NaN or infinity.

    Raises:
        UserError: always.
    """
    for sample in range(representation.samples):
        if not np.isfinite(representation.rows(sample, sample + 1)).all():
            raise UserError(
                f"{describe(representation)} expects finite activations; sample {sample} has NaN "
                "or infinity; look at the network's input there, or leave the layer out"
            )
    raise UserError(
        f"{describe(representation)} expects activations whose squares float64 can hold; they are "
        "larger; scale them down"
    )


def _with_itself(left: Tensor) -> Tensor:
    if left.device.type == "cpu":
        # numpy hands A·Aᵀ to syrk, half the work; torch has no call for it.
        values = left.numpy()
        return torch.from_numpy(np.matmul(values, values.T))
    return left @ left.T
