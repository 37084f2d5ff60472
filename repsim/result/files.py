"""Results of comparisons as files: NetCDF-4, which xarray opens without repsim, and CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from repsim.errors import UserError
from repsim.files import replacing

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = 1
WORDS = ("model", "condition", "layer")


def save_result(result: xr.Dataset, path: str | Path) -> None:
    """Write a result of `compare` as NetCDF-4; a file of that name is replaced when it is whole.

    Raises:
        UserError: the folder does not exist or cannot be written.
    """
    # The replicates are ten times the size of all the rest.
    packed = {"replicates": {"zlib": True, "shuffle": True}} if "replicates" in result else {}
    with replacing(path) as beside:
        result.to_netcdf(beside, engine="h5netcdf", encoding=packed)


def load_result(path: str | Path) -> xr.Dataset:
    """Read a result into memory; the file is closed.

    Raises:
        UserError: no such file, cut short, something else than a result, or of a newer repsim.
    """
    import xarray as xr

    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: expected a result of repsim cka or compare; there is no such file; "
            "write one: repsim cka --pair clean,adv"
        )
    try:
        result = xr.load_dataset(path, engine="h5netcdf")
    except Exception as error:  # h5py and h5netcdf raise many kinds for a damaged file
        raise UserError(
            f"{path}: expected a result of repsim cka or compare; it cannot be read as one: it is "
            f"cut short or something else ({type(error).__name__}); write it again"
        ) from error
    schema = result.attrs.get("repsim_schema")
    if schema is None or "similarity" not in result or result["similarity"].dims != ("x", "y"):
        raise UserError(
            f"{path}: expected a result of repsim cka or compare; this is another file; a store of "
            "activations goes to repsim cka first"
        )
    if int(schema) != SCHEMA:
        raise UserError(
            f"{path}: expected a result of schema {SCHEMA}; got {schema}; update repsim, or write "
            "it again with repsim cka"
        )
    return result


def to_csv(result: xr.Dataset, path: str | Path) -> None:
    """Write a result as a long table, a line a cell: the names of x and y, then all variables.

    Raises:
        UserError: the folder does not exist or cannot be written.
    """
    names = [[result[f"{axis}_{word}"].values for word in WORDS] for axis in "xy"]
    values = [str(name) for name in result.data_vars if set(result[name].dims) == {"x", "y"}]
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*(f"{axis}_{word}" for axis in "xy" for word in WORDS), *values])
        arrays = [result[name].transpose("x", "y").values for name in values]
        for i, x in enumerate(zip(*names[0], strict=True)):
            for j, y in enumerate(zip(*names[1], strict=True)):
                table.writerow([*x, *y, *(repr(float(array[i, j])) for array in arrays)])
