"""What an extraction did, and what it will take on the disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repsim.hooks import Layer
from repsim.reduce import parse_reduce
from repsim.store import Column, open_store, stored_bytes


@dataclass(frozen=True)
class Accuracy:
    """Images classified correctly clean and under a condition, of all."""

    correct: int
    samples: int

    @property
    def value(self) -> float:
        """The fraction."""
        return self.correct / self.samples


@dataclass(frozen=True)
class ExtractReport:
    """What `extract` did and what the store holds now.

    Attributes:
        path: the store.
        status: "written", "continued", "condition added" or "already done".
        accuracy: by condition; empty where the network has no linear head.
        bytes: size of the file, and of its parts.
        layers: names in execution order.
        float32: layers stored in float32, and why.
        notes: lines that the user should read.
        seconds: wall time of the whole call.
        images_per_second: images that went through in this call, by time; 0 if none did.
    """

    path: Path
    status: str
    accuracy: dict[str, Accuracy]
    bytes: int
    layers: list[str]
    float32: dict[str, str]
    notes: list[str]
    seconds: float
    images_per_second: float


def estimate_bytes(
    layers: Sequence[Layer],
    samples: int,
    kinds: Sequence[str],
    *,
    reduce: str = "flatten",
    image_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    dtype: str = "auto",
) -> int:
    """Bytes that conditions will take in a store, with float16 wherever it may be used.

    Args:
        layers: what `select_layers` chose.
        samples: images.
        kinds: "clean", "control" or "attack", one a condition; clean images are kept as uint8.
        reduce: as `extract` takes it.
        image_shape: (channels, height, width).
        classes: columns of the logits.
        dtype: "auto" or "float32".
    """
    how = parse_reduce(reduce)
    kind = "float16" if dtype == "auto" else "float32"
    kept = [Column((how.features(layer.shape),), kind) for layer in layers]
    kept += [Column((classes,), "float32"), Column((), "float32"), Column((), "float32")]
    images = {k: Column(image_shape, "uint8" if k == "clean" else "float32") for k in set(kinds)}
    return sum(stored_bytes([*kept, images[k]], samples) for k in kinds)


def report(
    out: Path,
    status: str,
    notes: Sequence[str],
    began: float,
    images_per_second: float,
    *,
    head: bool = True,
) -> ExtractReport:
    """What the finished store says, with what is to be noted about it."""
    notes = list(notes)
    with open_store(out) as store:
        named = store.conditions if head else []
        accuracy = {name: Accuracy(*store.accuracy(name)) for name in named}
        float32 = store.float32_layers()
        for name in store.conditions:
            if store.kind(name) != "clean" and (unmoved := store.unmoved(name)):
                notes.append(
                    f"{name} left {unmoved} of {len(store)} images unmoved; their "
                    "representations equal the clean ones"
                )
        layers, parts = store.layers, store.parts
    if parts:
        folder = Path(parts[-1]).parent
        files = "1 file" if len(parts) == 1 else f"{len(parts)} files"
        notes.append(f"{out.name} has its rows in {files} in {folder}/: move both together")
    if float32:
        few = "; ".join(f"{layer}: {reason}" for layer, reason in list(float32.items())[:3])
        more = f"; and {len(float32) - 3} more" if len(float32) > 3 else ""
        notes.append(f"{len(float32)} of {len(layers)} layers are stored in float32 ({few}{more})")
    return ExtractReport(
        path=out,
        status=status,
        accuracy=accuracy,
        bytes=sum((out.parent / name).stat().st_size for name in [out.name, *parts]),
        layers=layers,
        float32=float32,
        notes=notes,
        seconds=time.perf_counter() - began,
        images_per_second=images_per_second,
    )
