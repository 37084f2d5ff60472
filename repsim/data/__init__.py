"""Data sets: images uint8 in memory, labels, class names, an id for every image."""

from repsim.data.images import (
    ImageData,
    as_image_data,
    batches,
    channel_statistics,
    draw,
    to_float,
)
from repsim.data.load import load_data
from repsim.data.sources import KNOWN, default_eps

__all__ = [
    "KNOWN",
    "ImageData",
    "as_image_data",
    "batches",
    "channel_statistics",
    "default_eps",
    "draw",
    "load_data",
    "to_float",
]
