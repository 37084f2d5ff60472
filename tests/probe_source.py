"""Features that a test makes up, as a source of probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from repsim.probe.reduce import choose_reduction
from repsim.probe.source import Source, Take


class MadeUp(Source):
    """Features (n, d) float32 by (condition, layer); counts how often it is fed."""

    def __init__(
        self, features: Mapping[tuple[str, str], Tensor], labels: Tensor, *,
        keys: Tensor | None = None, kinds: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.values = {key: value.float() for key, value in features.items()}
        self.reductions = {
            layer: choose_reduction("flatten", tuple(value.shape[1:]), 1)
            for (_, layer), value in features.items()
        }
        self.labels = labels
        self.keys = torch.arange(len(labels)) if keys is None else keys
        self.ids = self.keys.numpy().view(np.uint64)
        self.kinds = dict(kinds or {"clean": "clean"})
        self.device = "cpu"
        self.fed: list[tuple[str, int]] = []

    def outputs(self, condition: str, rows: Tensor, names: Sequence[str], take: Take) -> None:
        self.fed.append((condition, len(rows)))
        for name in names:
            take(name, self.values[condition, name][rows])


def blobs(
    n: int, features: int, classes: int = 4, *, spread: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Normal clouds about a random centre for each class: (n, features), int64 (n,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(n, features, generator=generator), labels
