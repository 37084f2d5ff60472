"""Activations that something else computed: arrays in memory, `.npy` files, other people's HDF5.

Everything is read in pieces and checked as it is read.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from repsim.compare import compare, match
from repsim.errors import UserError
from repsim.registry import near
from repsim.similarity import ArrayRepresentation, Representation

if TYPE_CHECKING:
    import xarray as xr

HDF5 = (".h5", ".hdf5", ".he5", ".hdf")
Source = Any  # np.ndarray (also memory-mapped) or h5py.Dataset: shape, dtype, slices of rows


@dataclass(frozen=True)
class FileRepresentation:
    """The activations of one layer in a file or an array; `rows` reads them.

    Attributes:
        source: (samples, features...), of which runs of rows can be taken.
        where: file and place in it, for messages.
        layer, condition, model: names in the result.
        order: rows of the source in the order wanted; all of them as they are by default.
    """

    source: Source
    where: str
    layer: str
    condition: str
    model: str
    order: NDArray[np.int64] | None = None

    @property
    def samples(self) -> int:
        """Number of rows."""
        return int(self.source.shape[0] if self.order is None else len(self.order))

    @property
    def features(self) -> int:
        """Number of columns, the output flattened."""
        return int(np.prod(self.source.shape[1:]))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, (stop - start, features), float32 or float64.

        Raises:
            UserError: NaN or infinity, naming the row.
        """
        if self.order is None:
            values = np.asarray(self.source[start:stop])
        else:
            wanted = self.order[start:stop]
            # HDF5 reads rows in rising order only, each once.
            unique, back = np.unique(wanted, return_inverse=True)
            values = np.asarray(self.source[unique])[back]
        # float32 holds half precision and whole numbers of up to 16 bits.
        kind = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else float
        values = values.reshape(len(values), -1).astype(kind, copy=False)
        good = np.isfinite(values).all(1)
        if not good.all():
            row = start + int(np.flatnonzero(~good)[0])
            row = row if self.order is None else int(self.order[row])
            raise UserError(
                f"{self.where}: expected finite activations; sample {row} has NaN or infinity; "
                "look at the network's input there, or leave the layer out"
            )
        return values

    def reordered(self, index: NDArray[np.int64]) -> FileRepresentation:
        """The same with row i taken from row index[i]."""
        return replace(self, order=index if self.order is None else self.order[index])


def open_arrays(
    source: Any,
    *,
    ids: Any = None,
    model: str | None = None,
    condition: str = "clean",
    mapping: Mapping[str, str] | None = None,
) -> tuple[list[FileRepresentation], np.ndarray | None]:
    """Layers of one network: from arrays in memory or from a file, which is not read yet.

    Args:
        source: an array (numpy, torch, nested lists) of (samples, features...); a dictionary
            layer -> array; a `.npy` file, which is mapped into memory; a `.npz` file, whose
            arrays are layers; or an HDF5 file, see `open_hdf5`.
        ids: of the samples, one-dimensional, whole numbers or text: an array, a `.npy` file, or
            the path of a data set in the HDF5 file.
        model: name in the result; the file's stem by default.
        condition: name of the condition in the result.
        mapping: for HDF5: layer -> path in the file.

    Returns:
        The layers, and the ids of their rows (None where none were given).

    Raises:
        UserError: no such file, another format, an object array (it would be a pickle), an array
            without features or of text, layers with other numbers of samples, ids of another
            number.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and path.suffix.lower() in HDF5:
        return open_hdf5(path, mapping, ids=ids, model=model, condition=condition)
    if mapping:
        raise UserError(
            f"a mapping belongs to an HDF5 file ({', '.join(HDF5)}); got one for "
            f"{path or 'arrays in memory'}"
        )
    if path is not None:
        found, name = _npy(path), path.stem
    elif isinstance(source, Mapping):
        found, name = {str(key): _in_memory(one) for key, one in source.items()}, "arrays"
    else:
        found, name = {"array": _in_memory(source)}, "arrays"
    if not found:
        raise UserError(f"{path or 'arrays'}: expected at least one layer; there is none")
    layers = [
        _checked(one, f"{path}" if path and layer == path.stem else f"{path or 'array'}:{layer}",
                 layer, condition, model or name)
        for layer, one in found.items()
    ]  # fmt: skip
    return layers, _ids(ids, _same_samples(layers), None)


def open_hdf5(
    path: str | Path,
    mapping: Mapping[str, str] | None = None,
    *,
    ids: Any = None,
    model: str | None = None,
    condition: str = "clean",
) -> tuple[list[FileRepresentation], np.ndarray | None]:
    """Layers in an HDF5 file of any making. It stays open while they are used.

    Args:
        path: the file.
        mapping: layer -> path of its data set (samples, features...); by default every data set
            of numbers with two dimensions or more, under its own path, in the file's order.
        ids: as in `open_arrays`, or the path of a data set.
        model: name in the result; the file's stem by default.
        condition: name of the condition in the result.

    Raises:
        UserError: no HDF5 file, no such data set, a group or ragged data, layers with other
            numbers of samples, ids of another number.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: expected an HDF5 file of activations; there is no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path}: expected an HDF5 file of activations; it is cut short or something else"
        ) from error
    try:
        datasets = _datasets(file)
        if mapping is None:
            mapping = {
                name: name for name, one in datasets.items()
                if one.ndim > 1 and one.dtype.kind in "fiub"
            }  # fmt: skip
            if not mapping:
                raise UserError(
                    f"{path}: expected data sets (samples, features...); it holds "
                    f"{', '.join(list(datasets)[:5]) or 'none'}; name them: --map LAYER=PATH"
                )
        if not mapping:
            raise UserError(f"{path}: expected a mapping with at least one layer; got none")
        layers = []
        for layer, place in mapping.items():
            dataset = _dataset(path, datasets, place, file)
            layers.append(
                _checked(dataset, f"{path}:{place}", layer, condition, model or path.stem)
            )
        count = _same_samples(layers)
        return layers, _ids(ids, count, lambda place: _dataset(path, datasets, place, file)[:])
    except BaseException:
        file.close()
        raise


def compare_arrays(
    x: Any,
    y: Any,
    *,
    ids_x: Any = None,
    ids_y: Any = None,
    map_x: Mapping[str, str] | None = None,
    map_y: Mapping[str, str] | None = None,
    names: tuple[str, str] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Every layer of one network against every layer of another, from arrays or files.

    Rows are matched by ids where both sides have them; otherwise row i of both is taken for the
    same sample, and a note in the result says so.

    Args:
        x: the rows' side; see `open_arrays`.
        y: the columns' side.
        ids_x, ids_y: of the samples; both or none.
        map_x, map_y: for HDF5 files: layer -> path in the file.
        names: of the two networks in the result; the files' stems by default.
        options: measure, estimator, kernel, ... of `repsim.compare.compare`.

    Returns:
        As `repsim.compare.compare`; the provenance says where the arrays are from.

    Raises:
        UserError: as in `open_arrays` and `compare`; other samples on one side; ids on one side.
    """
    itself = _one(x, y) and _one(ids_x, ids_y) and map_x == map_y
    names = names or _names(x, y, itself)
    notes = []
    with ExitStack() as stack:

        def opened(
            source: Any, ids: Any, mapping: Mapping[str, str] | None, name: str
        ) -> tuple[list[FileRepresentation], np.ndarray | None]:
            found = open_arrays(source, ids=ids, mapping=mapping, model=name)
            stack.callback(_close, found[0])
            return found

        rows, rows_ids = opened(x, ids_x, map_x, names[0])
        same = itself and names[0] == names[1]
        columns, columns_ids = (rows, rows_ids) if same else opened(y, ids_y, map_y, names[1])
        if (rows_ids is None) != (columns_ids is None):
            raise UserError(
                "sample ids are expected for both sides or for none; got them for one only"
            )
        if rows_ids is not None and columns_ids is not None:
            if not same:
                _, order = match(*_codes(rows_ids, columns_ids))
                columns = [one.reordered(order) for one in columns]
            options["ids"] = _hashes(rows_ids)
        elif rows[0].samples != columns[0].samples:
            raise UserError(
                f"expected the same samples on both sides; {rows[0].where} has {rows[0].samples} "
                f"rows, {columns[0].where} {columns[0].samples}; give --ids to say which they are"
            )
        elif not itself:
            notes.append("rows are matched by their position: no sample ids were given")
        result = compare(_plain(rows), _plain(columns), **options)
        origin = {"x": _origin(rows), "y": _origin(columns)}
    result.attrs["notes"] = json.dumps([*json.loads(result.attrs["notes"]), *notes])
    provenance = json.loads(result.attrs["provenance"])
    result.attrs["provenance"] = json.dumps({**provenance, "arrays": origin})
    return result


def _origin(layers: Sequence[FileRepresentation]) -> list[dict[str, Any]]:
    return [
        {"layer": one.layer, "from": one.where, "shape": list(map(int, one.source.shape)),
         "dtype": str(one.source.dtype)}
        for one in layers
    ]  # fmt: skip


def _close(layers: Sequence[FileRepresentation]) -> None:
    for one in layers:
        if isinstance(one.source, h5py.Dataset) and one.source:  # false once its file is closed
            one.source.file.close()


def _one(x: Any, y: Any) -> bool:
    """Whether both are the same object or the same path."""
    paths = isinstance(x, str | Path) and isinstance(y, str | Path)
    return x is y or (paths and Path(x) == Path(y))


def _plain(layers: Sequence[FileRepresentation]) -> list[Representation]:
    return [*layers]


def _names(x: Any, y: Any, itself: bool) -> tuple[str, str]:
    """File stems, or x and y; the same only where both sides are one."""
    one, two = (Path(side).stem if isinstance(side, str | Path) else word
                for side, word in ((x, "x"), (y, "y")))  # fmt: skip
    if itself:
        return one, one
    return (f"{one} (x)", f"{two} (y)") if one == two else (one, two)


def _npy(path: Path) -> dict[str, Source]:
    if not path.is_file():
        raise UserError(f"{path}: expected a file of activations; there is no such file")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise UserError(
            f"{path}: expected activations as .npy, .npz or HDF5 ({', '.join(HDF5)}); got a file "
            f"called *{path.suffix}"
        )
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {path.stem: found}
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        objects = "Python objects" in str(error) or "Object arrays" in str(error)
        what = (
            "it holds Python objects (a ragged array, or a pickle that could run code)"
            if objects
            else "it is cut short or something else"
        )
        raise UserError(f"{path}: expected an array of numbers; {what}") from error


def _in_memory(array: Any) -> Source:
    if isinstance(array, ArrayRepresentation):
        return array.values
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        return (array.float() if array.is_floating_point() and array.element_size() == 2
                else array).numpy()  # fmt: skip
    try:
        return np.asarray(array)
    except ValueError as error:
        raise UserError(
            f"activations expect rows of one shape, (samples, features...); {error}"
        ) from error


def _checked(
    source: Source, where: str, layer: str, condition: str, model: str
) -> FileRepresentation:
    """Numbers of (samples, features...), at least one of each."""
    if source.dtype.kind not in "fiub":
        ragged = source.dtype.kind == "O"
        raise UserError(
            f"{where}: expected numbers (samples, features...); got "
            + ("rows of different lengths or objects" if ragged else f"values of {source.dtype}")
        )
    if len(source.shape) < 2 or 0 in source.shape:
        raise UserError(
            f"{where}: expected an array (samples, features...); got shape {tuple(source.shape)}"
            + ("; a single feature is (samples, 1)" if len(source.shape) == 1 else "")
        )
    return FileRepresentation(source, where, layer, condition, model)


def _same_samples(layers: Sequence[FileRepresentation]) -> int:
    for one in layers:
        if one.samples != layers[0].samples:
            raise UserError(
                f"{one.where}: expected as many samples as {layers[0].where}, "
                f"{layers[0].samples}; got {one.samples}"
            )
    return layers[0].samples


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, one: Any) -> None:
        if isinstance(one, h5py.Dataset):
            found[name] = one

    file.visititems(visit)
    return found


def _dataset(
    path: Path, datasets: Mapping[str, h5py.Dataset], place: str, file: h5py.File
) -> h5py.Dataset:
    place = place.strip("/")
    if place in datasets:
        return datasets[place]
    what = "a group, not a data set" if place in file else "not there"
    raise UserError(
        f"{path}: expected a data set {place!r}; it is {what}; near: "
        f"{near(place, datasets) or 'the file holds none'}"
    )


def _ids(ids: Any, samples: int, read: Any) -> np.ndarray | None:
    """The sample ids as an array (samples,) of whole numbers or text."""
    if ids is None:
        return None
    where = "sample ids"
    if isinstance(ids, str | Path):
        where = f"sample ids {ids}"
        if str(ids).endswith(".npy"):
            ids = next(iter(_npy(Path(ids)).values()))
        elif read is not None:
            ids = read(str(ids))
        else:
            raise UserError(
                f"{where}: expected a .npy file, or a path in an HDF5 file; these activations are "
                "in no such file"
            )
    values = np.asarray(ids.detach().cpu().numpy() if isinstance(ids, Tensor) else ids)
    if values.dtype.kind == "O":  # how h5py gives text
        values = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.flat])
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        raise UserError(
            f"{where}: expected one dimension of whole numbers or text; got shape {values.shape} "
            f"of {values.dtype}"
        )
    if len(values) != samples:
        raise UserError(f"{where}: expected {samples}, one a sample; got {len(values)}")
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        rows = np.flatnonzero(values == unique[counts > 1][0])
        raise UserError(
            f"{where}: expected each once; {values[rows[0]]} is there {len(rows)} times (rows "
            f"{rows[0]} and {rows[1]}); rows could not be matched"
        )
    return values


def _hashes(ids: np.ndarray) -> NDArray[np.uint64]:
    """Ids of any kind as numbers that are the same in every run."""
    known = [one.decode() if isinstance(one, bytes) else str(one) for one in ids.tolist()]
    found = [hashlib.blake2b(one.encode(), digest_size=8).digest() for one in known]
    return np.frombuffer(b"".join(found), dtype="<u8").astype(np.uint64)


def _codes(x: np.ndarray, y: np.ndarray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Ids of any kind as whole numbers that are equal where the ids are."""
    if (x.dtype.kind in "iu") != (y.dtype.kind in "iu"):
        raise UserError(f"sample ids expect one kind on both sides; got {x.dtype} and {y.dtype}")
    places: dict[Any, int] = {}
    sides = []
    for side in (x, y):
        known = [one.decode() if isinstance(one, bytes) else one for one in side.tolist()]
        codes = [places.setdefault(one, len(places)) for one in known]
        sides.append(np.array(codes, dtype=np.uint64))
    return sides[0], sides[1]
