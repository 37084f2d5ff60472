"""The sums of all pairs from tiles of Gram matrices: no loop over pairs, no n × n matrix.

For a pair of tiles, the Gram tiles of all R representations are the rows of a matrix V, and V Vᵀ
holds the part of every Σ k_ij·l_ij that comes from it. Each Gram tile is computed once; the
symmetry of K saves nearly half of the products. V is float32; V Vᵀ is taken block by block, a pair
of jackknife groups each (some 10,000 products long), and added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from repsim.similarity.centred import Buffers, CentredTiles, GramTiles
from repsim.similarity.grams import GramRepresentation
from repsim.similarity.kernels import Fitted, Kernel
from repsim.similarity.representation import Representation
from repsim.similarity.sums import Sums
from repsim.similarity.tiles import Plan

Progress = Callable[[int, int], None]


def gram_sums(
    representations: list[Representation],
    plan: Plan,
    kernel: Kernel,
    *,
    device: torch.device,
    exact: bool = False,
    progress: Progress | None = None,
) -> Sums:
    """See `Sums`; cost n²/2·(Σ features + R²) multiplications and additions.

    Args:
        representations: R of the same samples.
        plan: the cut of the samples.
        kernel: linear or RBF.
        device: where the products are made.
        exact: in float64, from the very mean of the activations.
        progress: called with the Gram tiles that are done and their number.
    """
    count, groups, block = len(representations), plan.groups, plan.block
    wide = [one.features for one in representations if not isinstance(one, GramRepresentation)]
    dtype = torch.float64 if exact else torch.float32
    buffers = Buffers(plan, max(wide, default=0), device, dtype)
    sources: list[CentredTiles | GramTiles] = [
        GramTiles(one, plan, device=device)
        if isinstance(one, GramRepresentation)
        else CentredTiles(one, plan, buffers, keep=position in plan.keep, device=device)
        for position, one in enumerate(representations)
    ]
    fitted: list[Fitted] = []
    padding = [torch.from_numpy(np.flatnonzero(padded)).to(device) for padded in plan.padded]
    totals = _Totals(plan, count, device)
    blocks = groups * groups if len(plan.tiles) > 1 else groups * (groups + 1) // 2
    stack = torch.empty(blocks, count, block, block, dtype=dtype, device=device)  # V
    gram = torch.empty(groups * block, groups * block, dtype=dtype, device=device)

    with torch.inference_mode(), full_float32():
        for step, (a, b) in enumerate(plan.pairs):
            pairs = [(g, h) for g in range(groups) for h in range(g if a == b else 0, groups)]
            for position, source in enumerate(sources):
                source.prepare()
                if step == 0:
                    fitted.append(kernel.fit(source))
                source.products(a, b, gram)
                fitted[position].apply_(gram, a, b)
                if a == b:
                    gram.fill_diagonal_(0)
                gram[padding[a], :] = 0
                gram[:, padding[b]] = 0
                _scatter(gram, stack[:, position], block, upper=a == b)
                source.release()
                if progress:
                    progress(step * count + position + 1, len(plan.pairs) * count)
            totals.add(stack[: len(pairs)], pairs, a, b)

    diagonal = torch.stack([one.diagonal for one in fitted])  # (R, tiles, groups·block)
    return Sums(
        products=totals.products.cpu().numpy(),
        left=totals.left.cpu().numpy(),
        # (tiles, G, G, R, block) -> (G summed over, tiles·G·block, R)
        rows=plan.unpadded(totals.rows.permute(2, 0, 1, 4, 3).reshape(groups, -1, count)),
        diagonal=plan.unpadded(diagonal.flatten(1).T[None])[0],
        group_of=plan.group_of,
        scale=np.array([one.scale for one in fitted]),
        form="gram",
        exact=exact,
        coarse=np.array([isinstance(one, GramTiles) for one in sources]),
        reasons=[one.degenerate for one in fitted],
        doubts=np.array([one.doubtful for one in fitted]),
    )


def _scatter(gram: Tensor, out: Tensor, block: int, *, upper: bool) -> None:
    """Cut a Gram tile into its blocks, (blocks, block, block), in the order of the pairs."""
    groups = len(gram) // block
    done = 0
    for group in range(groups):
        stripe = gram[group * block : (group + 1) * block, group * block if upper else 0 :]
        width = stripe.shape[1] // block
        out[done : done + width] = stripe.unflatten(1, (width, block)).transpose(0, 1)
        done += width


class _Totals:
    """Sums over tile pairs in float64.

    Attributes:
        products: (R, R) see `Sums`.
        left: (G, R, R) see `Sums`.
        rows: (tiles, G, G, R, block) for each row of a block, the sum over columns of a group.
    """

    def __init__(self, plan: Plan, count: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.products = zeros(count, count)
        self.left = zeros(plan.groups, count, count)
        self.rows = zeros(len(plan.tiles), plan.groups, plan.groups, count, plan.block)

    def add(self, stack: Tensor, pairs: list[tuple[int, int]], a: int, b: int) -> None:
        """The part of V Vᵀ and of the row sums that comes from tiles a and b.

        Args:
            stack: (blocks, R, block, block) the Gram tiles.
            pairs: the groups of the rows and of the columns of each block.
            a: tile of the rows.
            b: tile of the columns.
        """
        first, second = torch.tensor(pairs, device=stack.device).T
        mirrored = (first != second) | (a != b)  # stands for its transpose too
        flat = stack.flatten(2)
        part = torch.bmm(flat, flat.transpose(1, 2)).double()
        part[mirrored] *= 2
        self.products += part.sum(0)
        group = torch.arange(len(self.left), device=stack.device)[:, None]
        stays = ((first != group) & (second != group)).double()  # (G, blocks)
        self.left += (stays @ part.flatten(1)).view_as(self.left)
        self.rows[a][first, second] += stack.sum(3)
        self.rows[b][second[mirrored], first[mirrored]] += stack.sum(2)[mirrored]


@contextmanager
def full_float32() -> Iterator[None]:
    """No reduced precision in float32 products, whatever the caller's setting."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
