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
from repsim.store import Part, open_store


def _model_json(loaded: LoadedModel) -> dict[str, Any]:
    """Name, hash and metadata; the training history stays in the checkpoint."""
    meta = {key: value for key, value in loaded.meta.items() if key != "history"}
    plain: dict[str, Any] = json.loads(json.dumps(meta, default=str))
    return {**plain, "name": loaded.name, "sha256": loaded.sha256}


def _data_json(data: ImageData) -> dict[str, Any]:
    return {
        "name": data.name,
        "split": data.split,
        "fingerprint": data.fingerprint,
        "samples": len(data),
        "classes": list(data.classes),
    }


def _samples_hash(data: ImageData) -> str:
    """Number of samples and a hash of their ids and labels in order."""
    content = data.ids.astype("<u8").tobytes() + data.labels.numpy().astype("<i8").tobytes()
    return f"{len(data)}:{hashlib.sha256(content).hexdigest()[:16]}"


def _missing(
    conditions: Sequence[_Source], there: Mapping[str, Any], out: Path
) -> list[_Source]:
    """The conditions that the finished store lacks."""
    for source in conditions:
        if source.name in there and there[source.name] != source.attack:
            raise UserError(
                f"{out}: its condition {source.name} was made otherwise: "
                f"{_changes(there[source.name], source.attack)}; name this one with as=NAME, "
                "choose another --out, or --overwrite"
            )
    return [source for source in conditions if source.name not in there]


def _changes(there: Any, asked: Any) -> str:
    """`params.steps 20 there, 40 asked`, of nested dictionaries."""
    flat_there, flat_asked = _flat(there), _flat(asked)
    keys = [k for k in {**flat_there, **flat_asked} if flat_there.get(k) != flat_asked.get(k)]
    return "; ".join(
        f"{key} {_short(flat_there.get(key))} there, {_short(flat_asked.get(key))} asked"
        for key in keys
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
        return f"{len(value)} of them ({', '.join(map(str, value[:2]))}...)"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def _settings(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in params.items())


def _finished(out: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of the store that is already there.

    Raises:
        UserError: it is not a store, or one of another request.
    """
    try:
        with open_store(out) as store:
            found = {name: store.attack(name) for name in store.conditions}
            asked_before = store.request
    except UserError as error:
        raise UserError(f"{error}; or choose another --out") from error
    if asked_before != request:
        raise UserError(
            f"{out}: there is a store of another request: {_changes(asked_before, request)}; "
            "choose another --out, or --overwrite"
        )
    return found


def _unfinished(
    path: Path, request: Mapping[str, Any], wanted: Mapping[str, Any], overwrite: bool
) -> Part | None:
    """The `.part` of this same request, if there is one to be trusted.

    Raises:
        UserError: it is of another request, or another process is writing it.
    """
    part = Part.reopen(path)
    if part is None:
        return None
    same = part.request == request
    if same and part.conditions == wanted:
        return part
    # Killed after a finished store was copied and before the copy was extended: nothing is lost.
    only_a_copy = same and part.complete and part.conditions.items() <= wanted.items()
    if not only_a_copy and not overwrite:
        changes = _changes(part.request, request) or _changes(part.conditions, wanted)
        part.close()
        raise UserError(
            f"{path}: there is unfinished work of another request: {changes}; finish it with its "
            "own command, remove that file, or --overwrite"
        )
    part.discard()
    return None


