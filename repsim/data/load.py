"""Finding a data set by name or folder."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from repsim.data.images import ImageData, as_image_data
from repsim.data.sources import (
    KNOWN,
    Source,
    class_folders,
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
    folder = _find_folder(source, split, root)
    if folder is not None:
        return _load_folder(folder, split, image_size)
    if ":" in source:
        name, found = source.rpartition(":")[2], _read_plugin(source, split)
    else:
        name, found = source, _read_known(source, split, _base(root), download)
    return _resized(_checked(found, name, split), image_size)


def _base(root: str | Path | None) -> Path:
    return Path(root or os.environ.get(ENVIRONMENT) or DEFAULT_ROOT)


def _find_folder(source: str, split: str, root: str | Path | None) -> Path | None:
    """The folder meant by `source`, if it means one: itself, or one of that name below the root."""
    if source == "digits":
        return None
    places = [Path(source), _base(root) / source]
    found = [folder for folder in places if _layout(folder, split)]
    if not found and source not in KNOWN:  # one without this split: let it say what is missing
        found = [folder for folder in places if folder.is_dir()]
    if found:
        return found[0]
    if os.sep in source and ":" not in source:
        raise UserError(f"--data expects a name or a folder; there is no folder {source}")
    return None


def _read_known(source: str, split: str, base: Path, download: bool) -> Source:
    if source == "digits":
        return read_digits(split)
    if source not in KNOWN:
        names = sorted(KNOWN)
        raise UserError(
            f"--data expects one of {', '.join(names)}, a folder, or the name of a folder in "
            f"{base}; got {source!r}; near: {near(source, names)}; --data-root or {ENVIRONMENT} "
            "name another place to look"
        )
    try:
        if download:
            base.mkdir(parents=True, exist_ok=True)
        return read_torchvision(source, base, split, download=download)
    except FileNotFoundError:
        raise UserError(
            f"--data {source}: expected {KNOWN[source].files} as torchvision has it in {base}, or "
            f"{split}.npz or {split}/ in {base / source}; found none that is whole; try "
            f"--download, or --data FOLDER, or --data-root or {ENVIRONMENT} with the folder that "
            "holds it"
        ) from None


def _load_folder(folder: Path, split: str, image_size: int | None) -> ImageData:
    name = folder.resolve().name
    data = _checked(_read_folder(folder, split, image_size), name, split)
    if name not in KNOWN:
        data = replace(data, name=_known_name(folder, data) or name)
    return _resized(data, image_size)


def _known_name(folder: Path, data: ImageData) -> str | None:
    """The well-known data set whose test images a folder holds."""
    if len(data.classes) not in (10, 100) or data.images.shape[-1] > 96:
        return None  # none of the known, which spares reading the test split
    if data.split != "test":
        try:
            data = _checked(_read_folder(folder, "test", data.images.shape[-1]), "", "test")
        except UserError:
            return None  # no such split, or one that is not asked for and need not be right
    return FINGERPRINTS.get(data.fingerprint)


def _checked(found: Source, name: str, split: str) -> ImageData:
    return as_image_data(
        found.images, found.labels, classes=found.classes or None, name=name, split=split
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
        _check_same_classes(folder)
        return read_class_folders(folder / split, image_size=image_size)
    raise UserError(
        f"{folder}: expected {split}.npz or a folder {split}/ with a folder for each class; there "
        "is neither"
    )


def _check_same_classes(folder: Path) -> None:
    """Labels are places in the sorted names: one class more in a split would shift them."""
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = class_folders(folder / "train"), class_folders(folder / "test")
        if train != test:
            odd = sorted(set(train) ^ set(test))
            raise UserError(
                f"{folder}: expected the same class folders in train/ and test/; only one of them "
                f"has {', '.join(odd[:5])}"
            )


def _read_plugin(source: str, split: str) -> Source:
    function = load_object(source, kind="data")
    wanted = f"--data {source}: expected a callable split -> (images, labels)"
    try:
        inspect.signature(function).bind(split)
    except (TypeError, ValueError) as error:
        raise UserError(f"{wanted}; {error}") from error
    found = function(split)
    if not isinstance(found, tuple) or len(found) not in (2, 3):
        raise UserError(f"{wanted} or (images, labels, classes); got {type(found).__name__}")
    classes = [str(c) for c in found[2]] if len(found) == 3 else []
    return Source(found[0], found[1], classes)


def _resized(data: ImageData, size: int | None) -> ImageData:
    """Images brought to (size, size), antialiased bilinear, in parts for memory."""
    if size is None or data.images.shape[-2:] == (size, size):
        return data
    parts = [
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True)
        for part in torch.split(data.images, 1024)
    ]
    images = torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
    return replace(data, images=images)
