"""Is what is on the disk the result, or a part of it, of the same request?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repsim.checkpoint import LoadedModel
from repsim.data import ImageData
from repsim.errors import UserError
from repsim.extract.conditions import Source
from repsim.store import Part, open_store


def request_json(
    loaded: LoadedModel,
    data: ImageData,
    layers: list[str],
    reduce: str,
    precision: str,
    seed: int,
    dtype: str,
) -> dict[str, Any]:
    """Everything that decides the content of a store, besides the conditions.

    Batch size and device are not in it: a run that was cut off may be continued on another
    machine, and numbers then differ by rounding only.
    """
    rows = data.ids.astype("<u8").tobytes() + data.labels.numpy().astype("<i8").tobytes()
    return {
        "model": loaded.content,
        "data": data.fingerprint,
        "samples": len(data),
        "rows": hashlib.sha256(rows).hexdigest(),
        "layers": layers,
        "reduce": reduce,
        "precision": precision,
        "seed": seed,
        "dtype": dtype,
    }


def model_json(loaded: LoadedModel) -> dict[str, Any]:
    """Name, hash and metadata; the training history stays in the checkpoint."""
    meta = {key: value for key, value in loaded.meta.items() if key != "history"}
    plain: dict[str, Any] = json.loads(json.dumps(meta, default=str))
    return {**plain, "name": loaded.name, "sha256": loaded.sha256}


def data_json(data: ImageData) -> dict[str, Any]:
    """Where the images come from; never a path."""
    return {
        "name": data.name,
        "split": data.split,
        "fingerprint": data.fingerprint,
        "samples": len(data),
        "classes": list(data.classes),
    }


def finished_conditions(out: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of the store that is already there, with their attacks.

    Raises:
        UserError: it is not a store, or one of another request.
    """
    try:
        with open_store(out) as store:
            found = {name: store.attack(name) for name in store.conditions}
            there = store.request
    except UserError as error:
        raise UserError(f"{error}; or choose another --out") from error
    if there != request:
        raise UserError(
            f"{out}: there is a store of another request: {_changes(there, request)}; choose "
            "another --out, or --overwrite"
        )
    return found


def missing_conditions(
    asked: Sequence[Source], there: Mapping[str, Any], out: Path
) -> list[Source]:
    """The conditions that the finished store lacks.

    Raises:
        UserError: a condition of that name was made by another attack.
    """
    for source in asked:
        if source.name in there and there[source.name] != source.attack:
            raise UserError(
                f"{out}: its condition {source.name} was made otherwise: "
                f"{_changes(there[source.name], source.attack)}; name this one with as=NAME, "
                "choose another --out, or --overwrite"
            )
    return [source for source in asked if source.name not in there]


def unfinished_changes(
    part: Part, request: Mapping[str, Any], conditions: Mapping[str, Any]
) -> str:
    """How an unfinished file differs from what is asked for; an empty text if it does not.

    Args:
        part: the file.
        request: as `request_json` gives it.
        conditions: all that the finished file is to have, with their attacks.
    """
    if part.request != request:
        return _changes(part.request, request)
    return "" if part.conditions == conditions else _conditions(part.conditions, conditions)


def _conditions(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if there.keys() != wanted.keys():
        return f"conditions {', '.join(there)} there, {', '.join(wanted)} asked"
    return _changes(there, wanted)


def _changes(there: Any, asked: Any) -> str:
    """`seed 0 there, 1 asked; ...` for all entries of nested dictionaries that differ."""
    before, now = _flat(there), _flat(asked)
    return "; ".join(
        f"{key} {_short(before.get(key))} there, {_short(now.get(key))} asked"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _short(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"{len(value)} ({', '.join(map(str, value[:2]))}, ...)"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
