"""Where an inversion begins: noise, another image, or grey."""

from __future__ import annotations

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.keyed import keyed_uniform

STARTS = ("noise", "image", "grey")
_FAINT = 0.05
_STREAM = 7919  # apart from the streams of the attacks' starts


def starting_images(
    images: Tensor,
    kind: str = "noise",
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    repetition: int = 0,
) -> Tensor:
    """An image to start from for each image, drawn by (seed, id, repetition).

    Args:
        images: (samples, c, h, w) in [0, 1].
        kind: "noise": every pixel uniform in [0, 1]. "image": another of `images`; of another
            class where labels are given, so that what the two share by their class is not there
            from the start (Jones et al. 2022). "grey": uniform in [0.45, 0.55], so that what is
            to be seen in the end is what the network asked for.
        labels: int64 (samples,).
        seed: of the draws.
        ids: int64 (samples,) keys of the images; their position by default.
        repetition: numbers independent draws.

    Returns:
        (samples, c, h, w). For "image" it depends on which images are given, not on their order
        as long as the ids differ.

    Raises:
        UserError: an unknown kind; no other image, or none of another class.
    """
    if kind not in STARTS:
        raise UserError(f"start expects one of {', '.join(STARTS)}, or images; got {kind!r}")
    keys = torch.arange(len(images), device=images.device) if ids is None else ids.to(images.device)
    stream = 2 * repetition + _STREAM
    if kind != "image":
        noise = keyed_uniform(keys, tuple(images.shape[1:]), seed=seed, stream=stream)
        if kind == "grey":
            noise = 0.5 + 2 * _FAINT * (noise - 0.5)
        # The layout in memory of the images: channels_last stays so.
        return torch.empty_like(images).copy_(noise)
    draws = keyed_uniform(keys, (1,), seed=seed, stream=stream + 1)[:, 0]
    return images[_others(keys, labels, draws)]


def _others(keys: Tensor, labels: Tensor | None, draws: Tensor) -> Tensor:
    """For each image the position of another one: int64 (samples,), each as likely."""
    order = keys.argsort(stable=True)
    classes = torch.arange(len(keys)) if labels is None else labels
    classes = classes.to(keys.device)
    chosen = torch.empty_like(order)
    for label in classes.unique():
        mine = classes == label
        allowed = order[classes[order] != label]
        if len(allowed) == 0:
            raise UserError(
                f"start=image expects {'another image' if labels is None else 'two classes'} among "
                f"the images; got {len(keys)} image(s) of one; try start=noise"
            )
        chosen[mine] = allowed[(draws[mine] * len(allowed)).long().clamp_max(len(allowed) - 1)]
    return chosen
