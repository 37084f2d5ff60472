"""Augmentation in batches on the device, one draw for each image.

The draws are keyed by (seed, sample id), so they do not depend on the batch an image is in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repsim.errors import UserError
from repsim.keyed import keyed_uniform

AUGMENTATIONS = ("none", "crop", "crop-flip")
# Keeps these draws apart from the attack's, which in training have the same seed and keys.
_STREAM = 1 << 33
_BY_DATA = {"digits": "none", "mnist": "crop", "fashion-mnist": "crop-flip", "svhn": "crop"}


def default_augmentation(data: str) -> str:
    """What is usual for a data set: no mirror images of digits, no crops at 8×8."""
    return _BY_DATA.get(data, "crop-flip")


def augment(images: Tensor, kind: str, *, keys: Tensor, seed: int) -> Tensor:
    """Pad by an eighth of the side (4 pixels at 32), crop at random, mirror at random.

    Args:
        images: (batch, c, h, w) of any dtype; uint8 moves the fewest bytes.
        kind: "none", "crop" or "crop-flip".
        keys: int64 (batch,), keys of the draws.
        seed: another one for each epoch.

    Returns:
        Images of the same shape and dtype; in channels_last layout where anything was done.

    Raises:
        UserError: unknown kind.
    """
    if kind not in AUGMENTATIONS:
        raise UserError(f"--augment expects one of {', '.join(AUGMENTATIONS)}; got {kind!r}")
    if kind == "none":
        return images
    batch, _, height, width = images.shape
    pad = max(1, height // 8)
    draws = keyed_uniform(keys, (3,), seed=seed, stream=_STREAM)
    offset = (draws[:, :2] * (2 * pad + 1)).long()
    rows = offset[:, :1] + torch.arange(height, device=images.device)  # (batch, h)
    columns = offset[:, 1:] + torch.arange(width, device=images.device)  # (batch, w)
    if kind == "crop-flip":
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad))
    which = torch.arange(batch, device=images.device)[:, None, None]
    # Indexing with the channels between the indices gives (batch, h, w, c): channels_last.
    picked = padded[which, :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
