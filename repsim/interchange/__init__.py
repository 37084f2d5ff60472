"""Other tools' results and activations: read in, checked against, and compared like repsim's own.

from repsim.interchange import compare_arrays, import_torch_cka, torch_cka_values
"""

from repsim.interchange.arrays import (
    FileRepresentation,
    compare_arrays,
    open_arrays,
    open_hdf5,
)
from repsim.interchange.compat import Compat, torch_cka_values
from repsim.interchange.export import Export, import_torch_cka, read_torch_cka
from repsim.interchange.hooked import HookedRow, hooked_rows

__all__ = [
    "Compat",
    "Export",
    "FileRepresentation",
    "HookedRow",
    "compare_arrays",
    "hooked_rows",
    "import_torch_cka",
    "open_arrays",
    "open_hdf5",
    "read_torch_cka",
    "torch_cka_values",
]
