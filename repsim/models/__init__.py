"""Model architectures by name, and the pixel model that wraps one.

Every factory is called with the keyword arguments `classes`, `channels` (of the image, 3) and
`image_size` (32) and gives a plain encoder: normalised images in, logits out of a linear head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from repsim.errors import UserError
from repsim.models.external import (
    build,
    check_images,
    timm_model,
    torchvision_model,
    user_model,
)
from repsim.models.normalize import Normalized
from repsim.models.preact_resnet import preact_resnet18
from repsim.models.resnet import (
    resnet8,
    resnet18,
    resnet20,
    resnet20_s2,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
)
from repsim.models.smoothed import Smoothed
from repsim.models.vit import vit_small, vit_tiny
from repsim.models.wide_resnet import (
    wide_resnet,
    wide_resnet16_4,
    wide_resnet28_10,
    wide_resnet34_10,
)
from repsim.registry import near

__all__ = ["MODELS", "Normalized", "Smoothed", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet20-s2": resnet20_s2,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "wide_resnet": wide_resnet,
    "wide_resnet16_4": wide_resnet16_4,
    "wide_resnet28_10": wide_resnet28_10,
    "wide_resnet34_10": wide_resnet34_10,
    "preact_resnet18": preact_resnet18,
    "vit_tiny": vit_tiny,
    "vit_small": vit_small,
}

_LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "torchvision": torchvision_model,
    "timm": timm_model,
}


def build_model(
    arch: str, *, classes: int, channels: int = 3, image_size: int = 32, **arch_args: Any
) -> nn.Module:
    """An untrained encoder with its linear head inside: normalised images in, logits out.

    Args:
        arch: a name of `MODELS`, `torchvision/NAME`, `timm/NAME`, `module:callable` or
            `file.py:callable`.
        classes: number of logits.
        channels: image channels.
        image_size: height and width of the images.
        arch_args: passed on to the architecture, e.g. `depth=10, widen=2` for `wide_resnet`.

    Raises:
        UserError: no such architecture, it refuses the arguments, it can't take images of this
            size, or (a foreign one) it gives no (batch, classes) logits.
    """
    sizes = {"classes": classes, "channels": channels, "image_size": image_size}
    if wrong := [f"{name}={value}" for name, value in sizes.items() if value < 1]:
        raise UserError(f"a model needs at least one of each, got {', '.join(wrong)}")
    if arch in MODELS:
        return build(MODELS[arch], arch, {**sizes, **arch_args})
    library, _, name = arch.partition("/")
    if ":" in arch:
        model = user_model(arch, **sizes, **arch_args)
    elif library in _LIBRARIES:
        model = _LIBRARIES[library](name, **sizes, **arch_args)
    else:
        raise UserError(
            f"--model expects one of {', '.join(MODELS)}, torchvision/NAME, timm/NAME, "
            f"module:callable or file.py:callable; got {arch!r}; near: {near(arch, MODELS)}"
        )
    check_images(model, arch, **sizes)
    return model
