"""The store of activations: an HDF5 file that can be killed at any moment while it is written."""

from repsim.store.background import Background
from repsim.store.dtype import storage_dtype
from repsim.store.layout import SCHEMA, Column, Condition, chunk_rows, stored_bytes
from repsim.store.read import Store, StoredLayer, match_rows, open_store
from repsim.store.write import DiskFull, Part, require_space, show_bytes

__all__ = [
    "SCHEMA",
    "Background",
    "Column",
    "Condition",
    "DiskFull",
    "Part",
    "Store",
    "StoredLayer",
    "chunk_rows",
    "match_rows",
    "open_store",
    "require_space",
    "show_bytes",
    "storage_dtype",
    "stored_bytes",
]
