"""Readers: where images come from. Each returns arrays for `as_image_data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from repsim.errors import UserError


class Source(NamedTuple):
    """What a reader returns: images, labels and class names (none: as many as labels)."""

    images: Any
    labels: Any
    classes: list[str]


@dataclass(frozen=True)
class Known:
    """A data set that is known by name.

    Attributes:
        eps: the attack's default linf size, in pixel units.
        reference: torchvision's class for it, if it has one.
        files: what that class reads, below the root.
    """

    eps: float
    reference: str | None = None
    files: str = ""


KNOWN: dict[str, Known] = {
    "cifar10": Known(8 / 255, "CIFAR10", "cifar-10-batches-py/"),
    "cifar100": Known(8 / 255, "CIFAR100", "cifar-100-python/"),
    "svhn": Known(8 / 255, "SVHN", "train_32x32.mat and test_32x32.mat"),
    "stl10": Known(8 / 255, "STL10", "stl10_binary/"),
    "mnist": Known(0.3, "MNIST", "MNIST/raw/"),
    "fashion-mnist": Known(0.3, "FashionMNIST", "FashionMNIST/raw/"),
    "digits": Known(0.15),
}
DEFAULT_EPS = 8 / 255


def default_eps(name: str) -> float:
    """The linf size of attacks on this data set, in pixel units; 8/255 where none is known."""
    return KNOWN[name].eps if name in KNOWN else DEFAULT_EPS


def read_digits(split: str) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey, 16 levels spread over 0 to 255.

    They come without a split: of each class a fixed 28% (the same in every run) is the test
    split, 1,297 and 500 images.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=500, stratify=bunch.target, random_state=0
    )
    rows = np.sort(train if split == "train" else test)
    return Source(images[rows], bunch.target[rows].astype(np.int64), [str(d) for d in range(10)])


def read_npz(path: Path) -> Source:
    """`images` uint8 (N, H, W, C), `labels` int64 (N,) and, if there, `classes` str (C,).

    Raises:
        UserError: not an .npz, arrays missing, or an object array (which could run code).
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"images", "labels"} - set(file.files)
            if missing:
                raise UserError(
                    f"{path}: expected arrays images and labels; got {', '.join(file.files)}"
                )
            images, labels = file["images"], file["labels"]
            classes = [str(c) for c in file["classes"]] if "classes" in file.files else []
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: expected an .npz of plain arrays; reading it failed: {error}"
        ) from error
    return Source(images, labels, classes)


_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders of a split, sorted: the order of the labels."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_class_folders(folder: Path, *, image_size: int | None) -> Source:
    """A folder with a folder of image files for each class.

    Args:
        folder: `train/` or `test/`.
        image_size: side in pixels that every image is brought to (shorter side resized, centre
            cropped); None takes them as they are.

    Raises:
        UserError: fewer than two class folders, a class without images, an unreadable file, one
            of more than 8 bits, or images of several sizes without an image_size.
    """
    from PIL import Image, ImageOps

    classes = class_folders(folder)
    if len(classes) < 2:
        raise UserError(
            f"{folder}: expected a folder for each of at least 2 classes; got {len(classes)}"
        )
    images: list[np.ndarray] = []
    labels: list[int] = []
    first: Path | None = None
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).rglob("[!.]*") if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise UserError(f"{folder / name}: expected image files; got none")
        for path in files:
            try:
                with Image.open(path) as opened:
                    if opened.mode[0] in "IF":  # Pillow would cut them off at 255
                        raise ValueError(f"expected 8 bits a channel; got mode {opened.mode}")
                    grey = opened.mode in ("1", "L")
                    image: Any = opened.convert("L" if grey else "RGB")
            except Exception as error:
                raise UserError(f"{path}: expected an image; reading it failed: {error}") from error
            if image_size is not None:
                image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
            array = np.asarray(image)
            if images and array.shape[:2] != images[0].shape[:2]:
                raise UserError(
                    f"{folder}: expected images of one size; got {images[0].shape[1]}×"
                    f"{images[0].shape[0]} ({first}) and {array.shape[1]}×{array.shape[0]} "
                    f"({path}); give --image-size"
                )
            if first is None:
                first = path
            images.append(array)
            labels.append(label)
    if len({array.ndim for array in images}) > 1:  # some grey, some in colour
        images = [a if a.ndim == 3 else np.repeat(a[..., None], 3, axis=2) for a in images]
    return Source(np.stack(images), np.asarray(labels, dtype=np.int64), classes)


def read_torchvision(name: str, root: Path, split: str, *, download: bool) -> Source:
    """One of `KNOWN` by torchvision's reader.

    Raises:
        FileNotFoundError: the files are not below root, or damaged.
        UserError: downloading failed, or the files cannot be read.
    """
    import torchvision.datasets as datasets

    reference = KNOWN[name].reference
    assert reference is not None
    reader = getattr(datasets, reference)
    by_split = name in ("svhn", "stl10")
    which: dict[str, Any] = {"split": split} if by_split else {"train": split == "train"}
    try:
        found = reader(str(root), download=download, **which)
    except Exception as error:
        if download:
            raise UserError(f"--download of {name} to {root} failed: {error}") from error
        if isinstance(error, OSError) or "not found" in str(error):  # how torchvision says it
            raise FileNotFoundError(str(error)) from error
        raise UserError(
            f"--data {name}: torchvision cannot read {KNOWN[name].files} in {root}: {error}; "
            "remove it and try --download"
        ) from error
    labels = getattr(found, "targets", None)
    if labels is None:
        labels = found.labels
    images = found.data
    classes = getattr(found, "classes", None) or [str(i) for i in range(10)]
    pixels = images if isinstance(images, torch.Tensor) else torch.from_numpy(images)
    return Source(pixels, torch.as_tensor(np.asarray(labels), dtype=torch.int64), list(classes))
