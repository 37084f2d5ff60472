"""One condition against another, of one store or of two, beside what both must be read against.

    repsim cka --pair clean,adv

All layers of both sides, and of the controls of their attacks, go through one comparison.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repsim.compare import AllPairs, compare_all, match
from repsim.errors import UserError
from repsim.progress import Progress
from repsim.registry import near
from repsim.similarity import Representation
from repsim.store import Store, open_store

if TYPE_CHECKING:
    import xarray as xr

Side = tuple[str, str]  # name of the store, condition


@dataclass
class PairReport:
    """What `compare_pair` found.

    Attributes:
        result: the matrix, its summary and its provenance; see `repsim.compare.compare`.
        sides: (store, condition) of the rows and of the columns.
        controls: the sides with their attacks replaced by the stores' controls; None where
            nothing is attacked or a store has no control.
        alignment: of the sides, by key; empty where they do not have the same layers.
        control: the same of the controls.
        long_range: by "store:condition" for each side and each control.
        notes: what the user should read.
    """

    result: xr.Dataset
    sides: tuple[Side, Side]
    controls: tuple[Side, Side] | None
    alignment: dict[str, Any]
    control: dict[str, Any]
    long_range: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The numbers as plain values: alignment, control, long_range, samples."""
        return {
            "pair": [":".join(side) for side in self.sides],
            "samples": int(self.result.attrs["samples"]),
            **self.alignment,
            "control": self.control,
            "long_range": {k: v["long_range"] for k, v in self.long_range.items()},
            "long_range_ci": {k: v.get("long_range_ci") for k, v in self.long_range.items()},
        }


def compare_pair(
    stores: Sequence[str | Path],
    pair: str,
    *,
    layers: Sequence[str] = (),
    measure: str = "cka",
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
        progress: told of the work.
        options: further ones of `compare_all`.

    Raises:
        UserError: a side that is not there, stores of other samples, a pattern that matches no
            layer, and what `compare_all` refuses.
    """
    with ExitStack() as stack:
        opened = _open([Path(path) for path in stores], pair, stack)
        x, y = (_side(text, opened) for text in _sides(pair))
        controls = (_control(opened, x), _control(opened, y))
        beside = None
        if None not in controls and controls != (x, y):
            beside = (controls[0] or x, controls[1] or y)
        wanted = list(dict.fromkeys([x, y, *(beside or ())]))
        everything = compare_all(
            _representations(opened, wanted, layers),
            only=[(x, y), *([beside] if beside else []), *((side, side) for side in wanted)],
            measure=measure,
            progress=progress,
            **options,
        )
        notes = [*everything.pairs.notes, *_unmoved(opened, wanted)]
        provenance = {name: _origin(store, wanted) for name, store in opened.items()}
        result = everything.matrix(x, y)
    same_layers = list(result["x_layer"].values) == list(result["y_layer"].values)
    aligned = everything.alignment(x, y) if same_layers and x != y else {}
    report = PairReport(
        result=result,
        sides=(x, y),
        controls=beside,
        alignment=aligned,
        control=everything.alignment(*beside) if beside and aligned else {},
        long_range=_long_range(everything, wanted),
        notes=notes,
    )
    result.attrs["summary"] = json.dumps(report.summary())
    known = json.loads(result.attrs["provenance"])
    result.attrs["provenance"] = json.dumps({**known, "stores": provenance})
    return report


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
    opened: dict[str, Store], wanted: list[Side], layers: Sequence[str]
) -> list[Representation]:
    """All layers of the wanted sides, rows in the order of the first store."""
    first = opened[wanted[0][0]]
    found: list[Representation] = []
    for name, condition in wanted:
        store = opened[name]
        chosen = store.representations(condition)
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


def _long_range(everything: AllPairs, wanted: list[Side]) -> dict[str, dict[str, Any]]:
    return {":".join(side): everything.long_range(side) for side in wanted}


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
