"""Models that are not repsim's: torchvision's, timm's and the user's own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from repsim.errors import UserError
from repsim.registry import load_object, near


def torchvision_model(
    name: str, *, classes: int, channels: int, image_size: int, **arch_args: Any
) -> nn.Module:
    """`torchvision/NAME`: any of torchvision's classification models.

    Only the models with a position embedding are told the image size; the others keep their
    ImageNet stem. For images that are not RGB the weights of the first convolution are adapted.

    Raises:
        UserError: no such model, or torchvision refuses the arguments.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(
            f"torchvision has no classification model {name!r}; near: {near(name, known)}"
        )
    if name.startswith("vit_"):
        arch_args.setdefault("image_size", image_size)
    elif name.startswith("maxvit"):
        arch_args.setdefault("input_size", (image_size, image_size))
    elif name in ("googlenet", "inception_v3"):
        # Auxiliary heads would make the output in train mode something else than logits; and
        # without init_weights torchvision warns.
        arch_args = {"aux_logits": False, "init_weights": True, **arch_args}
    arguments = {"num_classes": classes, **arch_args}
    model = build(
        lambda **kwargs: models.get_model(name, **kwargs), f"torchvision/{name}", arguments
    )
    if channels != 3:
        _adapt_first_convolution(model, channels)
    return model


def timm_model(
    name: str, *, classes: int, channels: int, image_size: int, **arch_args: Any
) -> nn.Module:
    """`timm/NAME`: any of timm's models, untrained unless `pretrained=True` is among arch_args.

    Only the models whose input size is fixed (transformers) are told the image size.

    Raises:
        UserError: timm is not installed, has no such model, or refuses the arguments.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"timm/{name} needs the package timm, which is not installed; "
            "try pip install 'repsim-robustness[timm]'"
        ) from error

    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}; near: {near(name, timm.list_models())}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        arch_args.setdefault("img_size", image_size)
    arguments = {"num_classes": classes, "in_chans": channels, **arch_args}
    return build(lambda **kwargs: timm.create_model(name, **kwargs), f"timm/{name}", arguments)


def user_model(
    spec: str, *, classes: int, channels: int, image_size: int, **arch_args: Any
) -> nn.Module:
    """`module:callable` or `file.py:callable`: the user's own function, class or module.

    Of `classes`, `channels` and `image_size` it is given those that its signature accepts. A
    module that is already built is copied, so that two models never share weights.

    Raises:
        UserError: it can't be found or called so, or gives no module.
    """
    factory = load_object(spec, kind="model")
    if isinstance(factory, nn.Module):
        return copy.deepcopy(factory)
    if not callable(factory):
        raise UserError(
            f"--model {spec} expects a function or class that gives a torch.nn.Module, "
            f"got {type(factory).__name__}"
        )
    offered = {"classes": classes, "channels": channels, "image_size": image_size}
    return build(factory, spec, {**_accepted(factory, offered), **arch_args})


def build(factory: Callable[..., Any], spec: str, arguments: dict[str, Any]) -> nn.Module:
    """Call `factory`; what it refuses is the user's mistake.

    Raises:
        UserError: it raised, or what it gave is not a module.
    """
    try:
        model = factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            f"--model {spec}: building it with {given} failed with {_one_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--model {spec} expects a function or class that gives a torch.nn.Module, "
            f"it gave {type(model).__name__}"
        )
    return model


def check_images(
    model: nn.Module, spec: str, *, classes: int, channels: int, image_size: int
) -> None:
    """Run a foreign model once, on a blank image in eval mode: does it take it, and give logits?

    Raises:
        UserError: it fails on an image of this size, or gives no (batch, classes) logits.
    """
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters(), torch.empty(0))
    size = (1, channels, image_size, image_size)
    image = torch.zeros(size, dtype=like.dtype, device=like.device)
    shown = f"{channels}×{image_size}×{image_size}"
    try:
        model.eval()
        with torch.no_grad():
            logits = model(image)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--model {spec} can't take a {shown} image: {_one_line(error)}; "
            "try another --image-size"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"--model {spec} expects logits of shape (batch, {classes}), for one {shown} image it "
            f"gave {found}; a function that takes `classes` is told their number"
        )


def _accepted(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered keyword arguments that the signature has a place for."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some callables written in C have no signature
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return offered
    named = {
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    return {name: value for name, value in offered.items() if name in named}


def _adapt_first_convolution(model: nn.Module, channels: int) -> None:
    """Let the stem take `channels` image channels instead of three.

    Each gets the sum of the weights over RGB divided by `channels`: a grey image gives what it
    gave as RGB, and the scale of the initialisation (or of pretrained weights) stays.
    """
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    weight = stem.weight.detach().sum(1, keepdim=True) / channels
    stem.weight = nn.Parameter(weight.repeat(1, channels, 1, 1))
    stem.in_channels = channels


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
