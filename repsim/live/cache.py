"""Gram matrices on the disk: with them a comparison costs no forward pass.

A folder for each (network, condition, samples, batches) and in it an HDF5 file for each batch:
`grams` (layers, m(m+1)/2) float32, packed as in `repsim.similarity.minibatch`, `logits`
(m, classes), `ids` (m,), and the layers with their numbers of features as JSON. The folder's name
is a hash of everything that decides the content. A file has its name only when it is whole, so a
killed run continues, and several processes may fill a folder at once. It has the time of its last
use, so that what nobody needs any more can be told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.files import replacing

SCHEMA = 1


@dataclass(frozen=True)
class BatchGrams:
    """What is kept of a batch.

    Attributes:
        features: columns of each layer by name, in execution order.
        packed: (layers, m(m+1)/2) float32, on the host.
        logits: (m, classes) float32.
    """

    features: Mapping[str, int]
    packed: Tensor
    logits: Tensor

    def only(self, layers: Sequence[str]) -> BatchGrams:
        """The same with these layers, in this order."""
        if list(self.features) == list(layers):
            return self
        place = {name: i for i, name in enumerate(self.features)}
        rows = torch.tensor([place[name] for name in layers])
        return BatchGrams(
            {name: self.features[name] for name in layers}, self.packed[rows], self.logits
        )


class GramCache:
    """A folder of Gram matrices; made when the first one is kept.

    Args:
        folder: where; None keeps nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--cache {folder} expects a folder; this is a file")

    @staticmethod
    def key(about: Mapping[str, Any]) -> str:
        """Name of the folder of what `about` describes in plain values."""
        text = json.dumps({"schema": SCHEMA, **about}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def load(
        self, key: str, batch: int, layers: Sequence[str], ids: np.ndarray
    ) -> BatchGrams | None:
        """What is kept of a batch; None where nothing usable is.

        Args:
            key: of the network and condition.
            batch: number of the batch.
            layers: names that are wanted.
            ids: uint64 (m,) sample ids that the batch has to have.
        """
        if self.folder is None:
            return None
        path = self._path(key, batch)
        if not path.is_file():
            return None
        try:
            with h5py.File(path) as file:
                features = json.loads(file.attrs["features"])
                if not set(layers) <= set(features) or not np.array_equal(file["ids"][:], ids):
                    return None
                packed = torch.from_numpy(file["grams"][:])
                logits = torch.from_numpy(file["logits"][:])
        except (OSError, KeyError, ValueError):  # damaged: it is made anew
            return None
        with suppress(OSError):  # who clears the folder sees what is in use; it may be read-only
            path.touch()
        return BatchGrams(features, packed, logits).only(layers)

    def layers(self, key: str, batch: int) -> list[str]:
        """Names of the layers that are kept of a batch."""
        path = None if self.folder is None else self._path(key, batch)
        if path is None or not path.is_file():
            return []
        try:
            with h5py.File(path) as file:
                return list(json.loads(file.attrs["features"]))
        except (OSError, KeyError, ValueError):
            return []

    def save(
        self, key: str, batch: int, found: BatchGrams, ids: np.ndarray, about: Mapping[str, Any]
    ) -> int:
        """Keep a batch; returns the bytes written.

        Raises:
            UserError: the folder cannot be made or written.
        """
        if self.folder is None:
            return 0
        path = self._path(key, batch)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--cache {self.folder} expects a folder that can be written; {error.strerror}; "
                "give another or --no-cache"
            ) from error
        with replacing(path) as beside, h5py.File(beside, "w") as file:
            file.attrs["features"] = json.dumps(dict(found.features))
            file.attrs["about"] = json.dumps(about)
            file["grams"] = found.packed.numpy()
            file["logits"] = found.logits.numpy()
            file["ids"] = ids
        return path.stat().st_size

    def _path(self, key: str, batch: int) -> Path:
        assert self.folder is not None
        return self.folder / key / f"{batch:05}.h5"
