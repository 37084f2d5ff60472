"""The store of activations: an HDF5 file that can be killed at any moment while it is written."""

from repsim.store.background import Background
from repsim.store.dtype import storage_dtype
from repsim.store.layout import (
    COMPRESSIONS,
    SCHEMA,
    Column,
    Condition,
    Piece,
    chunk_rows,
    is_large,
    stored_bytes,
)
from repsim.store.read import Store, StoredLayer, match_rows, open_store, parts_of
from repsim.store.write import DiskFull, Part, described, free_bytes, require_space, show_bytes

__all__ = [
    "COMPRESSIONS",
    "SCHEMA",
    "Background",
    "Column",
    "Condition",
    "DiskFull",
    "Part",
    "Piece",
    "Store",
    "StoredLayer",
    "chunk_rows",
    "described",
    "free_bytes",
    "is_large",
    "match_rows",
    "open_store",
    "parts_of",
    "require_space",
    "show_bytes",
    "storage_dtype",
    "stored_bytes",
]
