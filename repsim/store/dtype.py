"""Whether float16 is enough for a layer."""

from __future__ import annotations

import torch
from torch import Tensor

# Later batches may be larger than the first.
_LARGEST = torch.finfo(torch.float16).max / 8
# float16 rounds to 2^-11 of a value: of 1/70 of the spread where the mean is 30 times the spread.
_OFFSET = 30.0
# Twice the smallest normal number: below, the rounding step is 2^-24 whatever the value.
_SMALLEST = 2 * torch.finfo(torch.float16).tiny


def storage_dtype(features: Tensor) -> tuple[torch.dtype, str]:
    """float16, or float32 and the reason for it.

    Rounding is harmless where it is small beside the spread over the samples, which is what
    similarity measures see: the column means drop out. The offset is therefore measured as
    √Σⱼ meanⱼ² / √Σⱼ varⱼ over the features j, and the smallness as the spread √(Σⱼ varⱼ / p).

    Args:
        features: (samples, features) float32, the layer's first batch.

    Returns:
        The type and, for float32, why; an empty text for float16.
    """
    if features.numel() == 0:
        return torch.float16, ""
    low, high = features.aminmax()
    mean = features.mean(0)
    # As a norm of the centred values: many times as fast as torch.var_mean, and as exact.
    spread_ = torch.linalg.vector_norm(features - mean) / len(features) ** 0.5
    offset_ = torch.linalg.vector_norm(mean)
    top, spread, offset = torch.stack([torch.maximum(-low, high), spread_, offset_]).tolist()
    if top == 0:
        return torch.float16, ""
    if top > _LARGEST:
        return torch.float32, f"|x| reaches {top:.3g}, near float16's largest number 65504"
    if spread == 0 and len(features) == 1:
        return torch.float32, "its first batch has one sample, so its spread is unknown"
    if offset > _OFFSET * spread:
        ratio = f"{offset / spread:.3g}" if spread else "infinite"
        return torch.float32, f"|mean|/std is {ratio}, over {_OFFSET:g}"
    typical = spread / features.shape[1] ** 0.5
    if typical < _SMALLEST:
        return torch.float32, f"std {typical:.3g} is below float16's normal numbers"
    return torch.float16, ""
