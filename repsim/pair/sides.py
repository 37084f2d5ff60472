"""One side against another, from a store or live, beside what both must be read against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from repsim.compare import AllPairs, compare_all, with_null
from repsim.errors import UserError
from repsim.pair.images import Images, Side, chosen_images, influence_table
from repsim.progress import Progress
from repsim.similarity import CKA, MEMORY, Representation
from repsim.similarity.duplicates import without_duplicates
from repsim.similarity.permutation import check_permutations
from repsim.similarity.subset import subset

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


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
        among: which images, if not all: their name, number, and of how many.
        influence: a row an image: see `influence_table`.
    """

    result: xr.Dataset
    sides: tuple[Side, Side]
    controls: tuple[Side, Side] | None
    alignment: dict[str, Any]
    control: dict[str, Any]
    long_range: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    among: dict[str, Any] | None = None
    influence: pd.DataFrame | None = None

    def summary(self) -> dict[str, Any]:
        """The numbers as plain values: alignment, control, long_range, samples.

        Where they were asked for, also the images chosen, the cells above the permutation null and
        the most influential images.
        """
        known = json.loads(self.result.attrs["summary"])
        more = {key: known[key] for key in known if "null_95" in key or key == "permutations"}
        if self.among:
            more |= self.among
        if within := json.loads(self.result.attrs["provenance"]).get("within"):
            more["within"] = within
        if self.influence is not None:
            first = self.influence[["index", "label", "mean"]].head(10)
            more["most_influential"] = first.to_dict("records")
        return {
            "pair": [":".join(side) for side in self.sides],
            "samples": int(self.result.attrs["samples"]),
            **self.alignment,
            "control": self.control,
            "long_range": {k: v["long_range"] for k, v in self.long_range.items()},
            "long_range_ci": {k: v.get("long_range_ci") for k, v in self.long_range.items()},
            **more,
        }


def compare_sides(
    representations: Sequence[Representation],
    x: Side,
    y: Side,
    *,
    images: Images,
    controls: tuple[Side, Side] | None = None,
    attacked: Sequence[Side] = (),
    measure: str = "cka",
    among: str | None = None,
    within: str | None = None,
    drop_duplicates: bool = False,
    permutations: int = 0,
    influence: bool = False,
    seed: int = 0,
    memory: int = MEMORY,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    **options: Any,
) -> PairReport:
    """Compare two sides, from a store or live, and what was asked for besides.

    Args:
        representations: of both sides, and of the controls, each in the order of its layers.
        x: the rows' (model, condition).
        y: the columns'.
        images: the representations' rows.
        controls: two sides beside which the pair is read.
        attacked: which of x and y are attacks.
        measure: as in `compare_all`.
        among: only images that are `right`, `fooled` or `unfooled`; see `images_among`.
        within: `class` for similarity within classes; see `within_class_cka`.
        drop_duplicates: leave out layers whose activations are an earlier one's.
        permutations: draws of the permutation null of every cell; none by default.
        influence: of single images on each layer's alignment; see `influence_table`.
        seed: of the permutations.
        memory: as in `compare_all`.
        device: as in `compare_all`.
        progress: told of the work.
        options: further ones of `compare_all`.

    Raises:
        UserError: too few images among those chosen, no logits to choose by, a measure that has
            none of this, and what `compare_all` refuses.
    """
    _check(measure, within=within, permutations=permutations, influence=influence)
    representations, notes = list(representations), []
    chosen = None
    if among is not None:
        positions = chosen_images(among, images, (x, y), attacked, options.get("estimator"))
        chosen = {"among": among, "of": len(images.ids)}
        images = Images(images.ids[positions], images.index[positions], images.labels[positions])
        representations = [subset(one, positions) for one in representations]
    if drop_duplicates:
        before = len(representations)
        representations, dropped = without_duplicates(representations)
        notes.append(
            f"left out {len(dropped)} layers that are duplicates: {_pairs_of(dropped)}"
            if len(representations) < before
            else "no layer is a duplicate of another: none was left out"
        )
    rows, columns = (
        [one for one in representations if (one.model, one.condition) == side] for side in (x, y)
    )
    if influence and (x == y or [r.layer for r in rows] != [c.layer for c in columns]):
        raise UserError(
            "--influence expects two different sides of the same layers; got "
            f"{':'.join(x)} ({len(rows)} layers) and {':'.join(y)} ({len(columns)})"
        )
    labels = images.labels if within else None
    sides = list(dict.fromkeys([x, y, *(controls or ())]))
    everything = compare_all(
        representations,
        only=[(x, y), *([controls] if controls else []), *((side, side) for side in sides)],
        measure=measure,
        within=labels,
        ids=images.ids,
        memory=memory,
        device=device,
        progress=progress,
        **options,
    )
    notes += [*everything.pairs.notes, *_duplicates(everything, (x, y))]
    result = everything.matrix(x, y)
    if permutations:
        result = with_null(
            result, rows, columns, permutations=permutations, seed=seed, within=labels,
            memory=memory, device=device, progress=progress,
        )  # fmt: skip
    same_layers = list(result["x_layer"].values) == list(result["y_layer"].values)
    aligned = everything.alignment(x, y) if same_layers and x != y else {}
    table = None
    if influence:
        table = influence_table(
            rows, columns, images, within=labels, memory=memory, progress=progress,
            **{key: options.get(key) for key in ("estimator", "kernel", "batch_size")},
        )  # fmt: skip
    report = PairReport(
        result=result,
        sides=(x, y),
        controls=controls,
        alignment=aligned,
        control=everything.alignment(*controls) if controls and aligned else {},
        long_range=_long_range(everything, sides),
        notes=notes,
        among=chosen,
        influence=table,
    )
    result.attrs["summary"] = json.dumps(report.summary())
    if chosen:
        known = json.loads(result.attrs["provenance"])
        result.attrs["provenance"] = json.dumps({**known, **chosen})
    return report


def _check(measure: object, *, within: str | None, permutations: int, influence: bool) -> None:
    """Refuse what only CKA has, and words that are none."""
    if within not in (None, "class"):
        raise UserError(f"--within expects class; got {within!r}")
    if permutations:
        check_permutations(permutations)
    asked = {"--within": within, "--permutations": permutations, "--influence": influence}
    for option, given in asked.items():
        if given and measure != "cka" and not isinstance(measure, CKA):
            name = getattr(measure, "name", measure)
            raise UserError(f"{option} belongs to the measure cka; got {name}; leave it out")


def _duplicates(everything: AllPairs, sides: tuple[Side, Side]) -> list[str]:
    """A note of the layers that are another's."""
    keys, found = everything.keys, everything.duplicate_of or []
    names = {
        keys[i][2]: keys[first][2]
        for i, first in enumerate(found)
        if first is not None and keys[i][:2] in sides
    }
    if not names:
        return []
    return [
        f"{len(names)} layers hold the activations of an earlier one ({_pairs_of(names)}) and "
        "count twice in means; --drop-duplicates leaves them out"
    ]


def _pairs_of(names: dict[str, str]) -> str:
    some = [f"{one} = {first}" for one, first in list(names.items())[:3]]
    return ", ".join(some) + (", ..." if len(names) > 3 else "")


def _long_range(everything: AllPairs, wanted: list[Side]) -> dict[str, dict[str, Any]]:
    return {":".join(side): everything.long_range(side) for side in wanted}
