"""Images in memory: uint8 pixels, labels, and an identity for every image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repsim.errors import UserError


@dataclass(frozen=True)
class ImageData:
    """One split of a data set, or a part of it.

    Attributes:
        images: uint8 (samples, channels, height, width), on the CPU.
        labels: int64 (samples,).
        classes: class names; labels index them.
        name: the data set's name, never a path.
        split: "train" or "test".
        index: int64 (samples,), positions in the source's split.
        source_fingerprint: fingerprint of the whole split where this is a part of it.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    index: Tensor
    source_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def ids(self) -> np.ndarray:
        """uint64 (samples,): a hash of each image's shape and bytes; equal images are equal."""
        shape = str(tuple(self.images.shape[1:])).encode()
        rows = self.images.flatten(1).contiguous().numpy()
        digests = [hashlib.blake2b(row, digest_size=8, key=shape).digest() for row in rows]
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)

    @cached_property
    def keys(self) -> Tensor:
        """int64 (samples,): the bits of `ids`, as torch has them; keys of random draws."""
        return torch.from_numpy(self.ids.view(np.int64).copy())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all (image, label) pairs of the whole split, whatever their order."""
        if self.source_fingerprint is not None:
            return self.source_fingerprint
        names = np.asarray([hash_text(name) for name in self.classes], dtype=np.uint64)
        pairs = np.stack([self.ids, names[self.labels.numpy()]], axis=1)
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        return hashlib.blake2b(pairs.astype("<u8").tobytes(), digest_size=16).hexdigest()

    def take(self, rows: Tensor | np.ndarray) -> ImageData:
        """The part made of these rows, in their order."""
        rows = torch.as_tensor(rows)
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            index=self.index[rows],
            source_fingerprint=self.fingerprint,
        )


def hash_text(text: str) -> int:
    """A 64-bit hash of a text, the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw(data: ImageData, samples: int) -> ImageData:
    """Class-balanced part: the same images in the same order however the source was ordered.

    Within each class the images with the smallest ids are taken, so a smaller draw is part of
    a larger one; the rows are then in the order of their ids, which is random with respect to
    class and content. No seed enters: networks of different seeds must see the same images.

    Args:
        data: a split.
        samples: images wanted in all; the whole split if it has fewer.

    Raises:
        UserError: samples below 1.
    """
    if samples < 1:
        raise UserError(f"--samples expects at least 1; got {samples}")
    order = np.lexsort((data.labels.numpy(), data.ids))
    if samples < len(data):
        labels = data.labels.numpy()[order]
        rank = np.empty(len(order), dtype=np.int64)  # place of each image within its class
        for label in np.unique(labels):
            members = labels == label
            rank[members] = np.arange(members.sum())
        # The lowest ranks of all classes first; a class that runs out is made up by the others.
        order = order[np.sort(np.lexsort((np.arange(len(order)), rank))[:samples])]
    return data.take(order)


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [0, 1], same shape."""
    return images.to(torch.float32).div_(255)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images, in units of [0, 1]."""
    counts = torch.stack(
        [torch.bincount(c.flatten().int(), minlength=256) for c in images.unbind(1)]
    )
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts.double() / counts.sum(1, keepdim=True)
    mean = weights @ values
    variance = weights @ values**2 - mean**2
    std = variance.clamp_min(1e-4).sqrt()  # a channel of one value must not divide by 0
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in std.tolist()]


def batches(
    data: ImageData, batch_size: int, device: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches in the order of the rows: float images, labels, keys; on the device."""
    for start in range(0, len(data), batch_size):
        part = slice(start, start + batch_size)
        images = data.images[part].to(device, non_blocking=True)
        yield to_float(images), data.labels[part].to(device), data.keys[part].to(device)


def as_image_data(
    images: Any,
    labels: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str,
    split: str,
) -> ImageData:
    """Check arrays and put them into the form that everything else expects.

    Args:
        images: array or tensor, uint8 or float in [0, 1]; (samples, height, width),
            (samples, height, width, 1|3) or (samples, 1|3, height, width).
        labels: array, tensor or list of whole numbers (samples,), from 0.
        classes: names; the numbers as text by default.
        name: the data set's name.
        split: "train" or "test".

    Raises:
        UserError: pixels outside [0, 1] or NaN, a shape that is not images, labels out of
            range, fewer than two classes.
    """
    where = f"data {name}/{split}"
    pixels = _as_tensor(images, f"{where}: images")
    if pixels.is_floating_point():
        low, high = (float(v) for v in pixels.aminmax()) if pixels.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{where}: float images expect pixels in [0, 1]; got [{low:.3g}, {high:.3g}]; "
                "pass uint8, or divide by 255 and do not normalise"
            )
        pixels = pixels.mul(255).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        raise UserError(
            f"{where}: images expect dtype uint8, or float in [0, 1]; got {pixels.dtype}"
        )
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    elif pixels.dim() == 4 and pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
        raise UserError(
            f"{where}: images expect shape (N, H, W), (N, H, W, 1|3) or (N, 1|3, H, W); got "
            f"{tuple(pixels.shape)}"
        )
    y = _as_tensor(labels, f"{where}: labels")
    if y.is_floating_point() or y.shape != (len(pixels),):
        raise UserError(
            f"{where}: labels expect one whole number an image ({len(pixels)}); got "
            f"{tuple(y.shape)} of {y.dtype}"
        )
    if len(y) == 0:
        raise UserError(f"{where}: expected images; got none")
    y = y.to(torch.int64)
    if classes is None:
        classes = [str(i) for i in range(int(y.max()) + 1)]
    if len(classes) < 2:
        raise UserError(f"{where}: expected at least 2 classes; got {len(classes)}")
    if int(y.min()) < 0 or int(y.max()) >= len(classes):
        raise UserError(
            f"{where}: labels expect 0 to {len(classes) - 1}; got {int(y.min())} to {int(y.max())}"
        )
    return ImageData(
        pixels.contiguous(), y, tuple(str(c) for c in classes), name, split, torch.arange(len(y))
    )


def _as_tensor(values: Any, what: str) -> Tensor:
    try:
        if not isinstance(values, Tensor):
            values = np.ascontiguousarray(values)  # torch takes no negative strides
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} expect an array of numbers of one shape; {error}") from error
