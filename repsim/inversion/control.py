"""The control of an inversion: noise that the network notices exactly as little."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repsim.attacks.ball import per_image
from repsim.inversion.features import PENULTIMATE, features
from repsim.inversion.invert import relative_distance
from repsim.keyed import keyed_normal

_STREAM = 104729
_SMALLEST, _LARGEST = 1e-5, 1.0  # deviation of the noise, in pixel units
_HALVINGS = 14  # of log10 in [-5, 0]: amplitudes to 0.1%


@torch.no_grad()
def noise_at_distance(
    model: nn.Module,
    images: Tensor,
    distance: Tensor,
    layer: str = PENULTIMATE,
    *,
    batch_size: int = 256,
    seed: int = 0,
    ids: Tensor | None = None,
    repetition: int = 0,
) -> tuple[Tensor, Tensor]:
    """clip(x + a·n, 0, 1), n normal, a such that ‖g(x + a·n) − g(x)‖₂ / ‖g(x)‖₂ = distance.

    An inversion ends at a small distance, not at 0. What another network makes of noise that
    leaves this network as near says how much of a low STIR is due to that remainder.

    Args:
        model: pixel model; g is it up to `layer`, see `repsim.inversion.features.features`.
        images: (samples, c, h, w) in [0, 1].
        distance: (samples,) what is to be reached; found by halving log a.
        layer: as in `invert`.
        batch_size: images at once.
        seed: of the noise, which is keyed by (seed, id, repetition).
        ids: int64 (samples,) keys; the position by default.
        repetition: numbers independent draws.

    Returns:
        The images, and the distance reached (samples,): smaller than wanted where even noise of
        deviation 1 is not noticed so much.

    Raises:
        UserError: as in `features`.
    """
    keys = torch.arange(len(images), device=images.device) if ids is None else ids.to(images.device)
    noisy, reached = [], []
    for x, key, wanted in zip(
        images.split(batch_size), keys.split(batch_size), distance.split(batch_size), strict=True
    ):
        noise = keyed_normal(key, tuple(x.shape[1:]), seed=seed, stream=_STREAM + repetition).to(x)
        wanted = wanted.to(x.device)
        with features(model, x, layer) as read:
            target = read(x)

            def move(size: Tensor, x: Tensor = x, noise: Tensor = noise) -> Tensor:
                return (x + per_image(10**size, x) * noise).clamp_(0, 1).to(x.dtype)

            low = torch.full((len(x),), _SMALLEST, device=x.device).log10()
            high = torch.full_like(low, _LARGEST).log10()
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                near = relative_distance(read(move(middle)), target) < wanted
                low, high = torch.where(near, middle, low), torch.where(near, high, middle)
            noisy.append(move(low))
            reached.append(relative_distance(read(noisy[-1]), target))
    return torch.cat(noisy), torch.cat(reached)
