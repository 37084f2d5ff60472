"""What was found: a table, the predictions behind it, and the probes themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.evaluate import accuracy_interval
from repsim.files import replacing

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
Key = tuple[str, str, str, str]  # layer, train, test, attack
COLUMNS = (
    "network", "layer", "features", "used_features", "reduce", "solver", "strength", "train",
    "test", "attack", "accuracy", "lower", "upper", "samples",
)  # fmt: skip
# Against what the test images were made: nothing, the whole network, the probe itself.
ATTACKS = ("none", "transfer", "adaptive")
_WEIGHTS = ("weight", "bias", "mean", "scale")


@dataclass
class ProbeReport:
    """Probes of the layers of one network.

    Attributes:
        table: a row for each layer, training, test condition and target of the attack, in the
            layers' execution order. `features` are the values of the layer's output,
            `used_features` those that the probe saw, `reduce` how they were made of them;
            `strength` was chosen on a part of the training split; `attack` is "none" (clean,
            noise), "transfer" (images attacked against the whole network, or another) or
            "adaptive" (against the probe itself, where an image that is wrong clean counts as
            wrong). `lower` and `upper` are the exact binomial 95% interval over test images.
        predictions: (n,) int64 by (layer, train, test, attack).
        labels: int64 (n,), true classes of the test images.
        ids: uint64 (n,), of the test images.
        provenance: networks, data, attacks, settings, number of classes, as plain values.
        weights: by (layer, train): weight (classes, used), bias (classes,), mean and scale (used,)
            of linear probes; see `repsim.probe.classifiers.Linear`.
        notes: what the user should read.
    """

    table: pd.DataFrame
    predictions: dict[Key, NDArray[np.int64]]
    labels: NDArray[np.int64]
    ids: NDArray[np.uint64]
    provenance: dict[str, Any]
    weights: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def network(self) -> str:
        """The network's name."""
        return str(self.table["network"].iloc[0])

    @property
    def classes(self) -> int:
        """Number of classes, of which 1/classes is what guessing gets right."""
        return int(self.provenance["classes"])

    @property
    def layers(self) -> list[str]:
        """Names in execution order."""
        return list(dict.fromkeys(self.table["layer"]))

    def save(self, path: str | Path) -> None:
        """Write all of it as NetCDF-4, which xarray opens: a row of the table is a `row`.

        Raises:
            UserError: the folder does not exist or cannot be written.
        """
        import h5py
        import xarray as xr

        rows = self.table[[*COLUMNS]]
        variables: dict[str, Any] = {}
        for name in COLUMNS:
            values = rows[name].to_numpy()
            variables[name] = (
                "row",
                values.astype(object) if values.dtype.kind in "OU" else values,
            )
        shown = rows[["layer", "train", "test", "attack"]].itertuples(index=False, name=None)
        found = np.stack([self.predictions[key] for key in shown])
        small = np.int16 if max(found.max(), self.labels.max()) < 2**15 else np.int64
        variables["prediction"] = (("row", "sample"), found.astype(small))
        variables["label"] = ("sample", self.labels)
        result = xr.Dataset(
            variables,
            {"sample_id": ("sample", self.ids)},
            {
                "repsim_probes": SCHEMA,
                "provenance": json.dumps(self.provenance),
                "notes": json.dumps(self.notes),
            },
        )
        with replacing(path) as beside:
            result.to_netcdf(
                beside, engine="h5netcdf",
                encoding={"prediction": {"zlib": True, "shuffle": True}},
            )  # fmt: skip
            with h5py.File(beside, "a") as file:
                group = file.create_group("probes")
                for number, ((layer, train), weights) in enumerate(self.weights.items()):
                    one = group.create_group(str(number))
                    one.attrs.update(layer=layer, train=train)
                    for name in _WEIGHTS:
                        one.create_dataset(name, data=weights[name])

    def to_csv(self, path: str | Path) -> None:
        """Write the table.

        Raises:
            UserError: the folder does not exist or cannot be written.
        """
        with replacing(path) as beside:
            self.table.to_csv(beside, index=False)

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return {
            "network": self.network,
            "layers": self.layers,
            "samples": len(self.labels),
            "probes": self.table.to_dict("records"),
            "notes": self.notes,
            "provenance": self.provenance,
        }


def rows_of(
    key: Key, predictions: NDArray[np.int64], labels: NDArray[np.int64], **known: Any
) -> dict[str, Any]:
    """One row of the table."""
    right = int((predictions == labels).sum())
    lower, upper = accuracy_interval(right, len(labels))
    layer, train, test, attack = key
    return {
        **known, "layer": layer, "train": train, "test": test, "attack": attack,
        "accuracy": right / len(labels), "lower": lower, "upper": upper, "samples": len(labels),
    }  # fmt: skip


def load_probes(path: str | Path) -> ProbeReport:
    """What `ProbeReport.save` wrote.

    Raises:
        UserError: no such file, cut short, something else, or of a newer repsim.
    """
    import h5py
    import xarray as xr

    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: expected a result of repsim probe; there is no such file; write one: repsim "
            "probe --model CHECKPOINT"
        )
    try:
        found = xr.load_dataset(path, engine="h5netcdf")
        weights = {}
        with h5py.File(path) as file:
            for number in sorted(file["probes"], key=int):
                one = file["probes"][number]
                key = str(one.attrs["layer"]), str(one.attrs["train"])
                weights[key] = {name: one[name][:] for name in _WEIGHTS}
    except Exception as error:  # h5py and h5netcdf raise many kinds for a damaged file
        raise UserError(
            f"{path}: expected a result of repsim probe; it cannot be read as one: it is cut short "
            f"or something else ({type(error).__name__}); write it again"
        ) from error
    schema = int(found.attrs.get("repsim_probes", 0))
    if schema != SCHEMA:
        raise UserError(
            f"{path}: expected a result of repsim probe of schema {SCHEMA}; got "
            f"{schema or 'another file'}; write it again with repsim probe"
        )
    table = found[[*COLUMNS]].to_dataframe().reset_index(drop=True)[[*COLUMNS]]
    keys = table[["layer", "train", "test", "attack"]].itertuples(index=False, name=None)
    predictions = found["prediction"].values.astype(np.int64)
    return ProbeReport(
        table,
        dict(zip(keys, predictions, strict=True)),
        found["label"].values.astype(np.int64),
        found["sample_id"].values.astype(np.uint64),
        json.loads(found.attrs["provenance"]),
        weights,
        json.loads(found.attrs["notes"]),
    )
