"""Results exported by torch_cka: a dictionary in a `.pt` file, names put right where possible."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.files import sha256_of
from repsim.hooks.record import NETWORK
from repsim.interchange.hooked import HookedRow, hooked_rows
from repsim.interchange.labelled import Side, labelled, with_itself

if TYPE_CHECKING:
    import xarray as xr

KEYS = ("CKA", "model1_layers", "model2_layers")
# torch_cka hooks what it is given: a wrapped network has one more name in front.
WRAPPERS = ("module", "_orig_mod")


@dataclass(frozen=True)
class Export:
    """What torch_cka's `export()` saved.

    Attributes:
        path: the file.
        matrix: (rows, columns) CKA.
        models: names of both.
        layers: modules of both in the order of `named_modules()`, which is not that of the rows.
        datasets: names of both.
    """

    path: Path
    matrix: NDArray[np.float64]
    models: tuple[str, str]
    layers: tuple[list[str], list[str]]
    datasets: tuple[str, str]


def read_torch_cka(path: str | Path) -> Export:
    """Read the file without running any code in it.

    Raises:
        UserError: no such file, none that torch can load as plain values, or other entries.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: expected torch_cka's export(), a dictionary; got {type(content).__name__}"
        )
    if missing := [key for key in KEYS if key not in content]:
        raise UserError(
            f"{path}: expected torch_cka's export() with {', '.join(KEYS)}; it has no "
            f"{', '.join(missing)} but {', '.join(map(str, [*content][:6])) or 'nothing'}"
        )
    matrix = content["CKA"]
    if not isinstance(matrix, Tensor | list) or (
        isinstance(matrix, Tensor) and not (matrix.ndim == 2 and matrix.is_floating_point())
    ):
        shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise UserError(f"{path}: expected CKA to be a matrix of numbers; got {shape}")
    try:
        values = torch.as_tensor(matrix, dtype=torch.float64).numpy()
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected CKA to be a matrix of numbers; {error}") from error
    if values.ndim != 2 or 0 in values.shape:
        raise UserError(f"{path}: expected CKA to be a matrix of numbers; got {values.shape}")
    layers = []
    for key, count, what in zip(KEYS[1:], values.shape, ("rows", "columns"), strict=True):
        names = content[key]
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise UserError(f"{path}: expected {key} to be a list of names; got something else")
        if len(names) != count or len(set(names)) != count:
            raise UserError(
                f"{path}: expected {key} to name each of the {count} {what} of CKA once; got "
                f"{len(names)} names, {len(set(names))} of them different"
            )
        layers.append(list(names))
    models, datasets = (
        (str(content.get(one, "")), str(content.get(two, "")))
        for one, two in (("model1_name", "model2_name"), ("dataset1_name", "dataset2_name"))
    )
    return Export(path, values, (models[0] or "model1", models[1] or "model2"),
                  (layers[0], layers[1]), datasets)  # fmt: skip


def import_torch_cka(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    images: Tensor | None = None,
    model2: nn.Module | None = None,
    images2: Tensor | None = None,
    pair: tuple[Side, Side] | None = None,
    samples: int = 0,
) -> xr.Dataset:
    """A result of repsim's from one of torch_cka's.

    With the models, each row gets the name of the call that it holds (see `HookedRow`); the
    matrix itself stays as it was. Without, rows are only numbered: the names in the file are in
    another order. Rows of equal content are marked in `x_duplicate_of` and `y_duplicate_of`.

    Args:
        path: the file.
        model: the network of the rows.
        images: (batch, channels, height, width) that it takes; noise will do.
        model2: that of the columns; `model` by default where the file has the same names for both.
        images2: what `model2` takes; `images` by default.
        pair: (model, condition) of rows and columns; the file's names and "clean" by default.
        samples: images behind the values, which the file does not say; 0: not known.

    Raises:
        UserError: as in `read_torch_cka`; a model that has not the modules named; sides of one
            name that differ.
    """
    export = read_torch_cka(path)
    notes: list[str] = []
    if pair is None:
        one, two = export.models
        if one == two and not with_itself(export.matrix):
            notes.append(f"both networks are called {one} in the file: here {one} (x), {one} (y)")
            one, two = f"{one} (x)", f"{two} (y)"
        pair = (one, "clean"), (two, "clean")
    if model2 is None and export.layers[0] == export.layers[1]:
        model2 = model
    images2 = images if images2 is None else images2
    provenance: dict[str, Any] = {
        "imported": {
            "file": export.path.name, "sha256": sha256_of(export.path), "tool": "torch_cka",
            "models": export.models, "datasets": export.datasets,
        }
    }  # fmt: skip
    matrix = export.matrix
    names: list[list[str]] = []
    for axis, (network, shown) in enumerate(((model, images), (model2, images2))):
        word = ("rows", "columns")[axis]
        if network is None or shown is None:
            count = matrix.shape[axis]
            names.append([f"module {i + 1}" for i in range(count)])
            notes.append(
                f"{word} are numbered: they are in the order in which the modules ran, the names "
                "in the file are not; give the model to have them named"
            )
            provenance["imported"][f"{'xy'[axis]}_names"] = export.layers[axis]
            continue
        rows = _rows(network, shown, export.layers[axis])
        if len(rows) < matrix.shape[axis]:
            # Modules that never ran: torch_cka leaves their rows empty at the end.
            notes.append(
                f"{matrix.shape[axis] - len(rows)} {word} at the end belong to modules that never "
                "ran and are left out"
            )
            matrix = np.take(matrix, range(len(rows)), axis=axis)
        names.append([row.layer for row in rows])
        same = axis == 1 and names[0] == names[1]
        notes = [*notes, *_hints(rows, word)] if not same else notes
        provenance["imported"][f"{'xy'[axis]}_changed_in_place"] = [
            row.layer for row in rows if row.changed_by
        ]
    if not samples:
        notes.append("the file does not say how many images are behind it")
    result = labelled(
        matrix, pair, (names[0], names[1]), samples=samples,
        attributes={"estimator": "minibatch", "kernel": "linear"}, notes=notes,
        provenance=provenance,
    )  # fmt: skip
    return result


def _hints(rows: Sequence[HookedRow], word: str) -> list[str]:
    """What is wrong with rows although their names are right; of columns alike, once."""
    hints = []
    if repeated := [row.layer for row in rows if row.layer.rpartition("@")[0] == row.module != ""]:
        hints.append(
            f"{len(repeated)} {word} hold the last of several calls, e.g. {repeated[0]}; the "
            "calls before are not there"
        )
    if changed := [row.layer for row in rows if row.changed_by]:
        hints.append(
            f"{len(changed)} {word} show tensors that were changed in place after the hook, e.g. "
            f"{changed[0]}: they are not that layer's output (repsim layers --check lists them)"
        )
    return hints


def _rows(model: nn.Module, images: Tensor, names: list[str]) -> list[HookedRow]:
    """The rows of these modules, whose names may have a wrapper's in front."""
    for wrapper in WRAPPERS:
        if wrapper in names:
            inner = [
                "" if name == wrapper else name.removeprefix(f"{wrapper}.")
                for name in names
                if name
            ]
            rows = hooked_rows(model, images, inner)
            last = HookedRow(wrapper, f"{NETWORK}@2", "", "")
            return [*rows, last] if "" in names else rows
    return hooked_rows(model, images, names)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: expected a file of torch_cka's export(); there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            found = ", ".join(sorted(map(str, _globals(path)))[:3])
            raise UserError(
                f"{path}: refused, because it holds more than plain values and tensors "
                f"({found or 'unknown objects'}) and loading it could run code; where it was made, "
                "save torch.save({**export, 'CKA': torch.as_tensor(export['CKA'])}, ...)"
            ) from error
        if path.read_bytes()[:1] == pickle.PROTO:
            raise UserError(
                f"{path}: refused, because it is a pickle, which could run code; where it was "
                "made, save the dictionary with torch.save"
            ) from error
        raise UserError(f"{path}: expected torch.save's file of torch_cka's export(); this is "
                        "something else") from error  # fmt: skip
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: expected torch.save's file of torch_cka's export(); it is cut short or "
            "something else; copy or download it again"
        ) from error


def _globals(path: Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # only names for the message; a file that hides them is refused all the same
        return []
