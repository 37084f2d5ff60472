"""All pairs of a comparison as one result file, with the replicates of the jackknife.

The file is a result as any other (`load_result`, `repsim plot`, `repsim diff` and xarray read it):
the same layers make the rows and the columns. What `AllPairs` knows besides is one attribute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repsim.errors import UserError
from repsim.files import replacing
from repsim.result.files import WORDS, load_result

if TYPE_CHECKING:
    from repsim.compare import AllPairs

MEMBERS = "pairs"  # the attribute; only a file of `save_pairs` has it


def save_pairs(
    path: str | Path, pairs: AllPairs, *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write everything against everything; a file of that name is replaced when it is whole.

    `similarity` keeps its float64; `lower`, `upper` and `replicates` (group, x, y) are float32,
    and all are compressed.

    Args:
        path: the file.
        pairs: the comparison.
        provenance: plain values that go beside those that every result has.

    Raises:
        UserError: the folder does not exist or cannot be written.
    """
    result = pairs.whole()
    known = json.loads(result.attrs["provenance"])
    result.attrs["provenance"] = json.dumps({**known, **(provenance or {})})
    result.attrs[MEMBERS] = json.dumps({
        "attributes": pairs.pairs.attributes,
        "sample_ids": pairs.sample_ids,
        "sizes": pairs.pairs.sizes.tolist(),
        "duplicates": pairs.duplicate_of,
    })  # fmt: skip
    for name in {"lower", "upper"} & set(result):
        result[name] = result[name].astype(np.float32)
    packed = {
        name: {"zlib": True, "shuffle": True, "complevel": 4}
        for name in ("similarity", "lower", "upper", "replicates")
        if name in result
    }
    with replacing(path) as beside:
        result.to_netcdf(beside, engine="h5netcdf", encoding=packed)


def load_pairs(path: str | Path) -> AllPairs:
    """What `save_pairs` wrote: the values to the bit, the replicates to float32.

    Raises:
        UserError: no such file, cut short, or a result of something else.
    """
    from repsim.compare import AllPairs
    from repsim.similarity import Pairs

    result = load_result(path)
    if MEMBERS not in result.attrs:
        raise UserError(
            f"{path}: expected all layers of all networks against one another, as repsim "
            "reproduce writes them to similarity.h5; this is another result"
        )
    members = json.loads(result.attrs[MEMBERS])
    names = [[str(value) for value in result[f"x_{word}"].values] for word in WORDS]
    replicates = None
    if "replicates" in result:
        replicates = result["replicates"].transpose("group", "x", "y").values.astype(np.float64)
    return AllPairs(
        keys=list(zip(*names, strict=True)),
        samples=int(result.attrs["samples"]),
        measure=str(result.attrs["measure"]),
        pairs=Pairs(
            result["similarity"].transpose("x", "y").values,
            replicates,
            np.array(members["sizes"], dtype=np.int64),
            members["attributes"],
            json.loads(result.attrs["notes"]),
        ),
        duplicate_of=members["duplicates"],
        sample_ids=members["sample_ids"],
    )
