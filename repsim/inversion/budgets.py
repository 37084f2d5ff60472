"""How much work to spend: named settings for a laptop and for a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Attributes are arguments of `shared_invariances`; `samples` is the number of images."""

    samples: int
    steps: int
    repetitions: int
    batch_size: int


BUDGETS = {
    # Two inversions of a resnet20-s2: three quarters of a minute on one core.
    "laptop": Budget(samples=128, steps=300, repetitions=2, batch_size=128),
    # Images and steps as in the papers (Nanda et al.: 1,000 images; Jones et al.: 2,000 steps).
    "gpu": Budget(samples=1000, steps=2000, repetitions=5, batch_size=500),
}
