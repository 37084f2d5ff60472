"""Finding a data set by name or folder."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from repsim.data.images import ImageData, as_image_data
from repsim.data.sources import (
    KNOWN,
    Source,
    read_class_folders,
    read_digits,
    read_npz,
    read_torchvision,
)
from repsim.errors import UserError
from repsim.registry import load_object, near

ENVIRONMENT = "REPSIM_DATA"
DEFAULT_ROOT = "data"

# Fingerprints of the test splits of data sets that also come as plain folders: a folder of any
# name is then known for what it holds, and a checkpoint keeps the name.
FINGERPRINTS: Mapping[str, str] = {
    "a50314888fe9ae5885a985c5f300479a": "cifar10",
    "04e4ffdadfc358a99a82149c19ef7990": "cifar100",
}


def load_data(
    source: str,
    split: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
) -> ImageData:
    """One split of a data set, in memory.

    Args:
        source: a known name; a folder with train.npz and test.npz, or with class folders below
            train/ and test/; the name of such a folder below the root; or the user's own
            `module:object` or `file.py:object`, a callable split -> (images, labels) or
            (images, labels, classes).
        split: "train" or "test".
        root: where data sets lie: by default the environment variable REPSIM_DATA, else ./data.
        download: fetch a data set that torchvision can fetch.
        image_size: side in pixels that images are brought to.

    Raises:
        UserError: nothing of that name, files missing (what, where it was looked for, what to
            type), or content that is not images and labels.
    """
    if split not in ("train", "test"):
        raise UserError(f"--split expects train or test; got {split!r}")
    name, found = _read(source, split, root, download, image_size)
    data = as_image_data(
        found.images, found.labels, classes=found.classes or None, name=name, split=split
    )
    if image_size is not None and data.images.shape[-2:] != (image_size, image_size):
        data = as_image_data(
            _resize(data.images, image_size), data.labels,
            classes=data.classes, name=name, split=split,
        )  # fmt: skip
    return data


def _read(
    source: str, split: str, root: str | Path | None, download: bool, image_size: int | None
) -> tuple[str, Source]:
    if ":" in source:
        return _plugin(source, split)
    if source == "digits":
        return source, read_digits(split)
    if os.sep in source or Path(source).is_dir():
        folder = Path(source)
        if not folder.is_dir():
            raise UserError(f"--data expects a name or a folder; there is no folder {source}")
        return _name_of(folder), _read_folder(folder, split, image_size)

    base = Path(root or os.environ.get(ENVIRONMENT) or DEFAULT_ROOT)
    folder = base / source
    if _layout(folder, split):
        return source, _read_folder(folder, split, image_size)
    if source in KNOWN:
        try:
            if download:
                base.mkdir(parents=True, exist_ok=True)
            return source, read_torchvision(source, base, split, download=download)
        except FileNotFoundError:
            raise UserError(
                f"--data {source}: expected torchvision's files in {base} or {split}.npz or "
                f"{split}/ in {folder}; there are none; try --download, or --data FOLDER, or "
                f"--data-root or {ENVIRONMENT} with the folder that holds them"
            ) from None
    names = sorted(KNOWN)
    raise UserError(
        f"--data expects one of {', '.join(names)}, a folder, or the name of a folder in {base}; "
        f"got {source!r}; near: {near(source, names)}; --data-root or {ENVIRONMENT} name another "
        "place to look"
    )


def _layout(folder: Path, split: str) -> str | None:
    if (folder / f"{split}.npz").is_file():
        return "npz"
    return "folders" if (folder / split).is_dir() else None


def _read_folder(folder: Path, split: str, image_size: int | None) -> Source:
    layout = _layout(folder, split)
    if layout == "npz":
        return read_npz(folder / f"{split}.npz")
    if layout == "folders":
        return read_class_folders(folder / split, image_size=image_size)
    raise UserError(
        f"{folder}: expected {split}.npz or a folder {split}/ with a folder for each class; there "
        "is neither"
    )


def _name_of(folder: Path) -> str:
    """The folder's name, or the well-known data set whose test images it holds."""
    name = folder.resolve().name
    layout = _layout(folder, "test")
    # Reading a folder of image files twice is dear: only where it can be one of the known.
    if layout == "folders" and len(list((folder / "test").iterdir())) not in (10, 100):
        return name
    if name in KNOWN or layout is None:
        return name
    found = _read_folder(folder, "test", None)
    test = as_image_data(
        found.images, found.labels, classes=found.classes or None, name=name, split="test"
    )
    return FINGERPRINTS.get(test.fingerprint, name)


def _plugin(source: str, split: str) -> tuple[str, Source]:
    function = load_object(source, kind="data")
    if not callable(function):
        raise UserError(f"--data {source}: expected a callable split -> (images, labels)")
    try:
        inspect.signature(function).bind(split)
        found = function(split)
    except TypeError as error:
        raise UserError(
            f"--data {source}: expected a callable split -> (images, labels); {error}"
        ) from error
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        raise UserError(
            f"--data {source}: expected (images, labels) or (images, labels, classes); got "
            f"{type(found).__name__}"
        )
    classes = [str(c) for c in found[2]] if len(found) == 3 else []
    return source.rpartition(":")[2], Source(found[0], found[1], classes)


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (N, C, H, W) -> (N, C, size, size), antialiased bilinear, in parts for memory."""
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in images.split(1024)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
