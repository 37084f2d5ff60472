"""The sides of a comparison from stores: named, opened, and their rows put in one order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from repsim.compare import match
from repsim.errors import UserError
from repsim.pair.images import Images, Side
from repsim.pair.sides import PairReport, compare_sides
from repsim.progress import Progress
from repsim.registry import near
from repsim.similarity import Representation, needs
from repsim.store import Store, open_store


def compare_pair(
    stores: Sequence[str | Path],
    pair: str,
    *,
    layers: Sequence[str] = (),
    measure: str = "cka",
    among: str | None = None,
    within: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PairReport:
    """Compare all layers of one side with all layers of the other.

    Args:
        stores: files; a side names one by its stem. A side may also name a file of its own.
        pair: "A,B"; each side is CONDITION (one store only), STORE:CONDITION or
            FILE.h5:CONDITION; `adv` is the one attack of a store. A makes the rows.
        layers: shell patterns; all layers of the stores by default.
        measure: as in `compare_all`.
        among: only images that are `right`, `fooled` or `unfooled`, by the stores' logits; see
            `images_among`.
        within: `class` for similarity within classes.
        progress: told of the work.
        options: further ones of `compare_sides`.

    Raises:
        UserError: a side that is not there, stores of other samples, a pattern that matches no
            layer, and what `compare_sides` refuses.
    """
    with ExitStack() as stack:
        opened = _open([Path(path) for path in stores], pair, stack)
        x, y = (_side(text, opened) for text in _sides(pair))
        controls = (_control(opened, x), _control(opened, y))
        beside = None
        if None not in controls and controls != (x, y):
            beside = (controls[0] or x, controls[1] or y)
        wanted = list(dict.fromkeys([x, y, *(beside or ())]))
        report = compare_sides(
            _representations(opened, wanted, layers, measure),
            x,
            y,
            controls=beside,
            images=_images(opened, (x, y), logits=among is not None),
            attacked=[side for side in (x, y) if opened[side[0]].kind(side[1]) == "attack"],
            measure=measure,
            among=among,
            within=within,
            progress=progress,
            **options,
        )
        report.notes += _unmoved(opened, wanted)
        provenance = {name: _origin(store, wanted) for name, store in opened.items()}
    known = json.loads(report.result.attrs["provenance"])
    report.result.attrs["provenance"] = json.dumps({**known, "stores": provenance})
    return report


def _images(opened: dict[str, Store], sides: tuple[Side, Side], *, logits: bool) -> Images:
    """Those of the first side's store, in its order."""
    first = opened[sides[0][0]]
    right = {}
    for name, condition in sides if logits else ():
        store = opened[name]
        for side in ((name, "clean"), (name, condition)):
            values = store.column(side[1], "logits")
            # A network without a linear head has a column that says nothing.
            if values is not None and np.ptp(values, axis=1).any():
                _, rows = match(first.ids, store.ids)
                right[side] = (values.argmax(1) == store.labels)[rows]
    return Images(first.ids, first.index, first.labels, right)


def _sides(pair: str) -> list[str]:
    sides = [side.strip() for side in pair.split(",")]
    if len(sides) != 2 or not all(sides):
        raise UserError(
            f"--pair expects two sides, such as clean,adv or st:adv,at:adv; got {pair!r}"
        )
    return sides


def _open(paths: list[Path], pair: str, stack: ExitStack) -> dict[str, Store]:
    """The stores by name, those that only a side of the pair names included."""
    named = [Path(side.rpartition(":")[0]) for side in _sides(pair) if ":" in side]
    paths = list(dict.fromkeys([*paths, *(p for p in named if p.suffix == ".h5")]))
    if not paths:
        raise UserError(
            "a comparison expects stores; give their files, or run repsim extract first, which "
            "writes features.h5"
        )
    opened: dict[str, Store] = {}
    for path in paths:
        if path.stem in opened:
            raise UserError(
                f"stores expect a name each, their file's stem; two are called {path.stem}; rename "
                "one of the files"
            )
        opened[path.stem] = stack.enter_context(open_store(path))
    return opened


def _side(text: str, opened: dict[str, Store]) -> Side:
    where, colon, condition = text.rpartition(":")
    if not colon:
        if len(opened) > 1:
            raise UserError(
                f"--pair expects STORE:CONDITION where there are several stores "
                f"({', '.join(opened)}); got {text!r}"
            )
        where = next(iter(opened))
    name = Path(where).stem if where.endswith(".h5") else where
    if name not in opened:
        raise UserError(
            f"--pair expects one of the stores {', '.join(opened)}; got {where!r}; near: "
            f"{near(name, opened)}"
        )
    return name, opened[name].resolve(condition)


def _control(opened: dict[str, Store], side: Side) -> Side | None:
    """The side itself, or the control of its store in place of an attack; None if it has none."""
    store = opened[side[0]]
    if store.kind(side[1]) != "attack":
        return side
    controls = [name for name in store.conditions if store.kind(name) == "control"]
    return (side[0], controls[0]) if controls else None


def _representations(
    opened: dict[str, Store], wanted: list[Side], layers: Sequence[str], measure: object
) -> list[Representation]:
    """All layers of the wanted sides, or their logits, rows in the order of the first store."""
    first = opened[wanted[0][0]]
    outputs = needs(measure) == "logits"
    if outputs and layers:
        raise UserError(
            f"--layers {layers[0]!r} expects a measure of layers; this one compares the networks' "
            "outputs; leave --layers out"
        )
    found: list[Representation] = []
    for name, condition in wanted:
        store = opened[name]
        chosen = [store.logits(condition)] if outputs else store.representations(condition)
        if layers:
            missing = [p for p in layers if not any(fnmatchcase(x, p) for x in store.layers)]
            if missing:
                raise UserError(
                    f"--layers {missing[0]!r} matches no layer of {store.path}; near: "
                    f"{near(missing[0], store.layers)}"
                )
            chosen = [r for r in chosen if any(fnmatchcase(r.layer, p) for p in layers)]
        if store is not first:
            _, rows = match(first.ids, store.ids)
            chosen = [r.reordered(rows) for r in chosen]
        found += chosen
    return found


def _unmoved(opened: dict[str, Store], wanted: list[Side]) -> list[str]:
    """Warnings of attacks that left images as they were: those rows are alike by definition."""
    notes = []
    for name, condition in wanted:
        moved = opened[name].column(condition, "moved")
        if opened[name].kind(condition) == "attack" and moved is not None and not moved.all():
            notes.append(
                f"{name}:{condition} left {int((~moved).sum())} of {len(moved)} images unmoved; "
                "similarity to clean is too high by them"
            )
    return notes


def _origin(store: Store, wanted: list[Side]) -> dict[str, Any]:
    """Where a store's numbers come from, as plain values."""
    conditions = [condition for name, condition in wanted if name == store.name]
    return {
        "model": {k: store.model.get(k) for k in ("name", "sha256", "arch", "scheme", "scenario")},
        "data": {k: store.data.get(k) for k in ("name", "split", "fingerprint", "samples")},
        "attacks": {condition: store.attack(condition) for condition in conditions},
        "request": store.request,
    }
