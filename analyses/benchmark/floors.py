"""The floors: the work that nobody can avoid, as bare loops in their fastest layout."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradient_steps(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """`steps` times forward and backward to the input of a frozen network, nothing else."""
    for _ in range(steps):
        x = images.detach().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(model(x), labels), x)


def forwards(model: nn.Module, images: Sequence[Tensor]) -> None:
    """A forward of each batch."""
    with torch.no_grad():
        for x in images:
            model(x)


def training_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Forward, backward and optimiser on ready float batches that lie on the device."""
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def gram_products(features: Sequence[np.ndarray]) -> np.ndarray:
    """Every X Xᵀ, and the one V Vᵀ of the flattened Gram matrices, in float32.

    numpy sees that both factors are the same array and lets BLAS compute one half only (syrk),
    which is faster than torch's full product.
    """
    gram = np.stack([(x @ x.T).ravel() for x in features])
    return gram @ gram.T


def sequential_write_rate(folder: str, size: int) -> float:
    """Bytes a second of writing a file from its start to its end, with its fsync."""
    block = os.urandom(1 << 22)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(max(1, size >> 22)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return (max(1, size >> 22) << 22) / (time.perf_counter() - began)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
