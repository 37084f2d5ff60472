"""Reading a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from repsim.data import to_float
from repsim.errors import UserError
from repsim.registry import near
from repsim.store.layout import SCHEMA, Piece

_BLOCK = 8192  # rows


@dataclass(frozen=True)
class StoredLayer:
    """The activations of one layer under one condition; read in pieces by `rows`.

    Attributes:
        model: name of the store.
        condition: name of the condition, never "adv".
        layer: name of the layer.
        samples: rows, after any reordering.
        features: columns, after the store's reduction.
        shape: of the layer's output for one sample, before the reduction.
        order: rows of the store in the order wanted; all of them as stored by default.
    """

    model: str
    condition: str
    layer: str
    samples: int
    features: int
    shape: tuple[int, ...]
    dataset: h5py.Dataset
    order: np.ndarray | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32 (stop - start, features)."""
        if self.order is None:
            return _float32(self.dataset[start:stop])
        return _float32(_read_rows(self.dataset, self.order[start:stop]))

    def reordered(self, index: np.ndarray) -> StoredLayer:
        """The same with row i taken from row index[i] of this one.

        Args:
            index: (k,) whole numbers in [0, samples); may leave rows out.

        Raises:
            UserError: a row that is not there.
        """
        index = np.asarray(index, dtype=np.int64)
        if len(index) and not (index.min() >= 0 and index.max() < self.samples):
            raise UserError(
                f"rows expect numbers from 0 to {self.samples - 1}; got {index.min()} to "
                f"{index.max()}"
            )
        order = index if self.order is None else self.order[index]
        return replace(self, order=order, samples=len(order))


class Store:
    """A finished store; made by `open_store`. Use it in a `with` block or call `close`.

    Attributes:
        path: the file.
        name: how it is called in comparisons: the file's stem unless given.
        layers: names in execution order.
        conditions: names: clean, controls, attacks.
        model: name, sha256 and metadata of the checkpoint.
        data: name, split and fingerprint of the images.
        request: everything that decides the content, besides the conditions.
        parts: names of further files that hold rows of it, relative to its folder.
    """

    def __init__(self, path: Path, name: str, file: h5py.File) -> None:
        self.path = path
        self.name = name
        self._file = file
        self.layers: list[str] = json.loads(file.attrs["layers"])
        self.model: dict[str, Any] = json.loads(file.attrs["model"])
        self.data: dict[str, Any] = json.loads(file.attrs["data"])
        self.request: dict[str, Any] = json.loads(file.attrs["request"])
        self.parts = [piece.file for piece in parts_of(file)]
        order = ("clean", "control", "attack")
        groups = file["conditions"]
        self._kinds = {name: str(groups[name].attrs["kind"]) for name in groups}
        self.conditions = sorted(groups, key=lambda name: (order.index(self._kinds[name]), name))

    def __len__(self) -> int:
        return len(self.ids)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; representations taken from it can then no longer be read."""
        self._file.close()

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (samples,)."""
        return np.asarray(self._file["samples/label"][:])

    @cached_property
    def ids(self) -> np.ndarray:
        """uint64 (samples,): the hash of each image."""
        return np.asarray(self._file["samples/id"][:])

    @cached_property
    def index(self) -> np.ndarray:
        """int64 (samples,): position of each image in its split."""
        return np.asarray(self._file["samples/index"][:])

    def kind(self, condition: str) -> str:
        """ "clean", "control" or "attack"."""
        kind: str = self._kinds[self.resolve(condition)]
        return kind

    def attack(self, condition: str) -> dict[str, Any] | None:
        """What made the inputs of a condition; None for clean."""
        group = self._file[f"conditions/{self.resolve(condition)}"]
        attack: dict[str, Any] | None = json.loads(group.attrs["attack"])
        return attack

    def resolve(self, condition: str) -> str:
        """The condition of that name; "adv" is the one that is an attack and not a control.

        Raises:
            UserError: no such condition, or adv where there is no attack or several.
        """
        if condition == "adv":
            attacks = [name for name in self.conditions if self._kinds[name] == "attack"]
            if len(attacks) == 1:
                return attacks[0]
            if not attacks:
                raise UserError(
                    f"{self.path}: adv expects a condition that is an attack; there are only "
                    f"{', '.join(self.conditions)}; add one: repsim extract ... --attack pgd"
                )
            raise UserError(
                f"{self.path}: adv expects exactly one attack; there are {', '.join(attacks)}; "
                "name one of them instead"
            )
        if condition not in self._kinds:
            raise UserError(
                f"{self.path}: expected one of its conditions, {', '.join(self.conditions)}, or "
                f"adv; got {condition!r}"
            )
        return condition

    def representation(self, condition: str, layer: str) -> StoredLayer:
        """The activations of a layer under a condition, not yet read.

        Raises:
            UserError: no such condition or layer; see `resolve` for adv.
        """
        condition = self.resolve(condition)
        if layer not in self.layers:
            raise UserError(
                f"{self.path}: expected one of its {len(self.layers)} layers; got {layer!r}; near: "
                f"{near(layer, self.layers)}"
            )
        dataset = self._file[f"conditions/{condition}/layers/{layer}"]
        samples, features = dataset.shape
        shape = tuple(json.loads(dataset.attrs["shape"]))
        return StoredLayer(self.name, condition, layer, samples, features, shape, dataset)

    def representations(self, condition: str) -> list[StoredLayer]:
        """Those of all layers in execution order."""
        return [self.representation(condition, layer) for layer in self.layers]

    def logits(self, condition: str) -> StoredLayer:
        """The network's outputs under a condition as a layer named "logits", not yet read.

        Raises:
            UserError: no such condition; see `resolve` for adv.
        """
        condition = self.resolve(condition)
        dataset = self._file[f"conditions/{condition}/logits"]
        samples, classes = dataset.shape
        return StoredLayer(self.name, condition, "logits", samples, classes, (classes,), dataset)

    def column(self, condition: str, name: str) -> np.ndarray | None:
        """A value an image: moved, norm, loss, first_success or logits; None if not stored."""
        group = self._file[f"conditions/{self.resolve(condition)}"]
        return np.asarray(group[name][:]) if name in group else None

    def inputs(self, condition: str, rows: np.ndarray | None = None) -> torch.Tensor:
        """Images (samples, channels, height, width) float32 in [0, 1] that the network saw.

        Args:
            condition: its name, or adv.
            rows: which ones, in any order; all by default.
        """
        dataset = self._file[f"conditions/{self.resolve(condition)}/inputs"]
        pixels = torch.from_numpy(dataset[:] if rows is None else _read_rows(dataset, rows))
        return pixels if pixels.is_floating_point() else to_float(pixels)

    def norm(self, condition: str) -> str:
        """The norm in which the column `norm` is measured."""
        group = self._file[f"conditions/{self.resolve(condition)}"]
        return str(group["norm"].attrs["norm"])

    def accuracy(self, condition: str) -> tuple[int, int]:
        """Images classified correctly clean and under the condition, and all of them."""
        names = {"clean", self.resolve(condition)}
        logits = [
            self._file[path]
            for name in names
            if (path := f"conditions/{name}/logits") in self._file
        ]
        correct = 0
        for rows in self._blocks():
            right = [dataset[rows].argmax(1) == self.labels[rows] for dataset in logits]
            correct += int(np.logical_and.reduce(right).sum())
        return correct, len(self)

    def unmoved(self, condition: str) -> int:
        """Images that are the clean ones, bit for bit; 0 where that is not stored."""
        group = self._file[f"conditions/{self.resolve(condition)}"]
        if "moved" not in group:
            return 0
        return sum(int((~group["moved"][rows]).sum()) for rows in self._blocks())

    def _blocks(self) -> Iterator[slice]:
        """All rows, some at a time."""
        for start in range(0, len(self), _BLOCK):
            yield slice(start, min(start + _BLOCK, len(self)))

    def float32_layers(self) -> dict[str, str]:
        """Layers that are stored in float32 under some condition, and why."""
        reasons: dict[str, str] = {}
        for layer in self.layers:
            for condition in self.conditions:
                reason = self._file[f"conditions/{condition}/layers/{layer}"].attrs["reason"]
                if reason:
                    reasons.setdefault(layer, str(reason))
        return reasons


def open_store(path: str | Path, *, name: str | None = None) -> Store:
    """A finished store, to be read.

    Args:
        path: the file.
        name: what it is called in comparisons; the file's stem by default.

    Raises:
        UserError: no such file, not a store, cut short, unfinished, or of another schema.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise UserError(
            f"{path}: expected a store of activations; there is no such file; write one: repsim "
            "extract --model CHECKPOINT --attack pgd"
        )
    try:
        file = h5py.File(path, "r")
    except BlockingIOError as error:
        raise UserError(f"{path}: another process is writing it; wait until it is done") from error
    except OSError as error:
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: expected a store; the file cannot be read") from error
        what = "the file is cut short" if _is_hdf5(path) else "this is no HDF5 file"
        raise UserError(
            f"{path}: expected a store of activations; {what}; write it again with repsim extract"
        ) from error
    try:
        return _checked(path, name or path.stem, file)
    except BaseException:
        file.close()
        raise


def _checked(path: Path, name: str, file: h5py.File) -> Store:
    try:
        if not {"schema", "conditions", "samples"} <= {*file.attrs, *file}:
            raise UserError(
                f"{path}: expected a store of activations; this HDF5 file is something else"
            )
        schema = int(file.attrs["schema"])
        if schema != SCHEMA:
            age, try_ = (
                ("an older", "write it again with repsim extract --overwrite")
                if schema < SCHEMA
                else ("a newer", "update repsim")
            )
            raise UserError(
                f"{path}: expected a store of schema {SCHEMA}; got {schema} of {age} repsim "
                f"({file.attrs.get('repsim_version')}); {try_}"
            )
        if not file.attrs["complete"]:
            raise UserError(
                f"{path}: expected a finished store; this one is not; give the same repsim extract "
                "again to finish it"
            )
        store = Store(path, name, file)
        _require_parts(store, file)
        _require(store, file)
        return store
    except (KeyError, ValueError, TypeError, RuntimeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: expected a store of activations; it is damaged ({error}); write it again "
            "with repsim extract --overwrite"
        ) from error


def _require(store: Store, file: h5py.File) -> None:
    """Every layer of every condition is there with a row a sample."""
    for name in store.conditions:
        group = file[f"conditions/{name}"]
        for column in ("inputs", "logits", *(f"layers/{layer}" for layer in store.layers)):
            if len(group[column]) != len(store):
                raise ValueError(f"{name}/{column} has {len(group[column])} rows of {len(store)}")


def _require_parts(store: Store, file: h5py.File) -> None:
    """HDF5 reads zeros where a virtual data set's file is missing, so look for it here."""
    for piece in parts_of(file):
        beside = [path.parent / piece.file for path in (store.path, store.path.resolve())]
        found = next((path for path in beside if path.is_file()), None)
        if found is None:
            raise UserError(
                f"{store.path}: expected its part {piece.file} beside it; there is none; move both "
                "together, or write it again with repsim extract --overwrite"
            )
        try:
            with h5py.File(found, "r") as part:
                share = json.loads(part.attrs["share"])
                fits = (share["start"], share["stop"]) == (piece.start, piece.stop)
                fits = fits and json.loads(part.attrs["request"]) == store.request
                fits = fits and bool(part.attrs["complete"])
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{store.path}: its part {found} is damaged ({error}); write it again with repsim "
                "extract --overwrite"
            ) from error
        if not fits:
            raise UserError(
                f"{store.path}: its part {found} is of another store; put the right one there, or "
                "write it again with repsim extract --overwrite"
            )


def parts_of(file: h5py.File) -> list[Piece]:
    """The files over which a store is spread besides its own; none for most."""
    return [Piece(**piece) for piece in json.loads(file.attrs.get("parts", "[]"))]


def match_rows(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Positions in `ids` of the samples `wanted`; the n-th of equal images for the n-th of them.

    Args:
        wanted: uint64 (k,) sample ids.
        ids: uint64 (n,) sample ids of a store.

    Returns:
        int64 (k,), -1 where a sample is not there.
    """
    if not len(wanted) or not len(ids):
        return np.full(len(wanted), -1, dtype=np.int64)
    mine, theirs = (np.argsort(values, kind="stable") for values in (wanted, ids))
    sought, there = wanted[mine], ids[theirs]
    nth = np.arange(len(sought)) - np.searchsorted(sought, sought)
    place = np.searchsorted(there, sought) + nth
    inside = np.minimum(place, len(there) - 1)
    found = np.empty(len(wanted), dtype=np.int64)
    found[mine] = np.where((place < len(there)) & (there[inside] == sought), theirs[inside], -1)
    return found


def _is_hdf5(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _read_rows(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows in any order, by one read for each run of neighbours; (len(rows), ...)."""
    result = np.empty((len(rows), *dataset.shape[1:]), dtype=dataset.dtype)
    by_row = np.argsort(rows, kind="stable")
    for run in np.split(by_row, np.flatnonzero(np.diff(rows[by_row]) != 1) + 1):
        if len(run):
            result[run] = dataset[rows[run[0]] : rows[run[-1]] + 1]
    return result


def _float32(values: np.ndarray) -> np.ndarray:
    """float16 to float32; torch does it several times as fast as numpy."""
    return np.asarray(torch.from_numpy(values).float().numpy())
