"""The sums of all pairs from covariance matrices: for narrow layers of many samples.

Σ_ij k_ij·l_ij = |XᵀY|², and Zᵀ Z of all representations side by side holds every XᵀY. It costs
n·P² for P features in all, against n²/2·(P + R²) for the Gram form, so it pays where *all*
representations are narrow (pooled features, logits; any pair with p << n). One wide layer among
them needs its Gram matrix anyway, and then the Gram matrices of the narrow ones cost next to
nothing: so the choice is made once for all, not pair by pair.

All is in float64: |XᵀX|² holds the squared diagonal of K, which is subtracted again.
"""

from __future__ import annotations

import numpy as np
import torch

from repsim.similarity.centred import Buffers, CentredTiles
from repsim.similarity.gram import Progress
from repsim.similarity.kernels import Linear
from repsim.similarity.representation import Representation
from repsim.similarity.sums import Sums
from repsim.similarity.tiles import Plan


def covariance_pays(samples: int, features: list[int], groups: int, memory: int) -> bool:
    """Whether the covariance form is cheaper than the Gram form, and fits `memory` bytes."""
    total, count = sum(features), len(features)
    fits = 8 * total**2 * (groups + 3) + 8 * samples * groups * count <= memory
    return fits and total**2 < samples / 2 * (total + count**2)


def covariance_sums(
    representations: list[Representation],
    plan: Plan,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> Sums:
    """See `Sums`; linear kernel.

    Args:
        representations: R of the same samples.
        plan: the cut of the samples.
        device: where the products are made.
        progress: called with the tiles that are done and their number.
    """
    buffers = Buffers(plan, max(one.features for one in representations), device, torch.float64)
    sources = [
        CentredTiles(one, plan, buffers, keep=False, device=device) for one in representations
    ]
    for source in sources:
        source.prepare()
        source.release()
    starts = np.cumsum([0, *(one.features for one in representations)])
    kernels = [Linear(source) for source in sources]
    scale = np.array([kernel.scale for kernel in kernels])
    width, groups, count = int(starts[-1]), plan.groups, len(sources)
    covariance = torch.zeros(groups, width, width, dtype=torch.float64, device=device)
    columns = torch.zeros(groups, width, dtype=torch.float64, device=device)

    def tile(index: int) -> torch.Tensor:
        """All representations side by side, (G, block, P), in units of √size."""
        parts = [
            source.tile(index) / float(np.sqrt(kernels[position].size))
            for position, source in enumerate(sources)
        ]
        return torch.cat(parts, 1).unflatten(0, (groups, plan.block))

    with torch.inference_mode():
        for index in range(len(plan.tiles)):
            values = tile(index)
            covariance += torch.bmm(values.transpose(1, 2), values)
            columns += values.sum(1)
            if progress:
                progress(index + 1, 2 * len(plan.tiles))
        squares = _squares(covariance.sum(0), starts)
        others = 1 - torch.eye(groups, dtype=torch.float64, device=device)
        without = [  # no difference of sums: a group may outweigh all others
            _squares(torch.tensordot(stay, covariance, 1), starts) for stay in others
        ]

        rows = np.zeros((groups, plan.samples, count))
        diagonal = np.zeros((plan.samples, count))
        for index, ((start, _), order) in enumerate(zip(plan.tiles, plan.order, strict=True)):
            values, real = tile(index).flatten(0, 1), ~plan.padded[index]
            place = start + order[real]
            for position in range(count):
                part = slice(starts[position], starts[position + 1])
                sums = values[:, part] @ columns[:, part].T
                rows[:, place, position] = sums.T.cpu().numpy()[:, real]
                norms = values[:, part].square().sum(1)
                diagonal[place, position] = norms.cpu().numpy()[real]
            if progress:
                progress(len(plan.tiles) + index + 1, 2 * len(plan.tiles))
    rows[plan.group_of, np.arange(plan.samples)] -= diagonal  # j ≠ i
    products = squares - diagonal.T @ diagonal
    left = []
    for group in range(groups):
        stay = diagonal[plan.group_of != group]
        left.append(without[group] - stay.T @ stay)
    return Sums(
        products=products,
        left=np.stack(left),
        rows=rows,
        diagonal=diagonal,
        group_of=plan.group_of,
        scale=scale,
        form="covariance",
        exact=False,
        coarse=np.zeros(count, dtype=np.bool_),
        reasons=[kernel.degenerate for kernel in kernels],
        doubts=np.zeros(count, dtype=np.bool_),
    )


def _squares(covariance: torch.Tensor, starts: np.ndarray) -> np.ndarray:
    """|XᵀY|² of every pair: sums of squares over the blocks of ZᵀZ, (R, R)."""
    squared = covariance.square().cpu().numpy()
    by_row = np.add.reduceat(squared, starts[:-1], axis=0)
    return np.asarray(np.add.reduceat(by_row, starts[:-1], axis=1))
