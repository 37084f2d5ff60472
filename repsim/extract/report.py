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
    """Images classified correctly under a condition, of all."""

    correct: int
    samples: int

    @property
    def value(self) -> float:
        """The fraction."""
        return self.correct / self.samples


@dataclass
class ExtractReport:
    """What `extract` did and what the store holds now.

    Attributes:
        path: the store.
        status: "written", "continued", "condition added" or "already done".
        accuracy: by condition.
        bytes: size of the file.
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
    conditions: int,
    *,
    reduce: str = "flatten",
    image_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    dtype: str = "auto",
) -> int:
    """Bytes that a store will take, with float16 wherever it may be used.

    Args:
        layers: what `select_layers` chose.
        samples: images.
        conditions: clean, controls and attacks together.
        reduce: as `extract` takes it.
        image_shape: (channels, height, width).
        classes: columns of the logits.
        dtype: "auto" or "float32".
    """
    how = parse_reduce(reduce)
    kind = "float16" if dtype == "auto" else "float32"
    kept = [Column((how.features(layer.shape),), kind) for layer in layers]
    kept += [Column((classes,), "float32"), Column((), "float64"), Column((), "float32")]
    clean, attacked = (Column(tuple(image_shape), name) for name in ("uint8", "float32"))
    total = stored_bytes([*kept, clean], samples)
    return total + (conditions - 1) * stored_bytes([*kept, attacked], samples)


def report(
    out: Path, status: str, notes: list[str], began: float, images_per_second: float
) -> ExtractReport:
    with open_store(out) as store:
        accuracy = {name: Accuracy(*store.accuracy(name)) for name in store.conditions}
        float32 = store.float32_layers()
        for name in store.conditions:
            moved = store.column(name, "moved")
            if store.kind(name) != "clean" and moved is not None and not moved.all():
                notes.append(
                    f"{name} left {int((~moved).sum())} of {len(moved)} images unmoved; their "
                    "representations equal the clean ones"
                )
        layers = store.layers
    reasons: dict[str, list[str]] = {}
    for layer, reason in float32.items():
        reasons.setdefault(reason, []).append(layer)
    for reason, names in reasons.items():
        few = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        notes.append(f"stored in float32: {few} ({reason})")
    return ExtractReport(
        path=out,
        status=status,
        accuracy=accuracy,
        bytes=out.stat().st_size,
        layers=layers,
        float32=float32,
        notes=notes,
        seconds=time.perf_counter() - began,
        images_per_second=images_per_second,
    )


