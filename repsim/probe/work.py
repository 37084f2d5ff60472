"""The probes of one network from training to table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repsim import __version__
from repsim.attacks import AttackSpec
from repsim.checkpoint import LoadedModel
from repsim.probe.adaptive import attack_probe, probed
from repsim.probe.classifiers import Linear
from repsim.probe.fit import Probes, fit_probes, predict
from repsim.probe.report import COLUMNS, Key, ProbeReport, rows_of
from repsim.probe.settings import Settings, Training, at_the_edge
from repsim.probe.source import Source
from repsim.progress import Progress
from repsim.runtime import Runtime

# (condition, rows) -> images (batch, c, h, w) as the network takes them.
Images = Callable[[str, Tensor], Tensor]


class Work:
    """Probes, and what they predict."""

    def __init__(
        self, train: Source, test: Source, asked: Sequence[Training], classes: int,
        settings: Settings, progress: Progress, notes: list[str],
    ) -> None:  # fmt: skip
        self.train, self.test, self.asked, self.classes = train, test, asked, classes
        self.settings, self.progress, self.notes = settings, progress, notes
        self.probes: Probes = {}
        self.predictions: dict[Key, NDArray[np.int64]] = {}
        self.network = ""

    def run(self, network: str) -> None:
        """Train, and test on every condition."""
        self.network = network
        self.probes = fit_probes(
            self.train, self.asked, self.classes, self.settings, self.progress, self.notes
        )
        for condition, kind in self.test.kinds.items():
            attack = "transfer" if kind == "attack" else "none"
            found = predict(
                self.test, self.probes, condition, self.settings.batch_size, self.progress
            )
            for (layer, train), predicted in found.items():
                self.predictions[layer, train, condition, attack] = predicted

    def attack(
        self, model: LoadedModel, specs: Sequence[AttackSpec], images: Images, runtime: Runtime
    ) -> None:
        """Attack each probe itself, by attacks of `aimed`."""
        total = len(self.probes) * len(specs)
        with self.progress.task("adaptive attacks", total, unit="probe") as task:
            for (layer, train), probe in self.probes.items():
                assert isinstance(probe, Linear)
                clean = self.predictions[layer, train, "clean", "none"]
                reduction = self.test.reductions[layer]
                first = images("clean", torch.arange(1))
                with probed(model.model, first, layer, reduction, probe) as network:
                    for spec in specs:
                        found = attack_probe(
                            network, spec, self._right(clean, images, runtime), clean, runtime,
                            self.settings.seed,
                        )  # fmt: skip
                        self.predictions[layer, train, spec.condition, "adaptive"] = found
                        task.advance(1)

    def _right(
        self, clean: NDArray[np.int64], images: Images, runtime: Runtime
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Batches of the images that a probe gets right: rows, images, labels, keys."""
        right = torch.nonzero(torch.from_numpy(clean) == self.test.labels)[:, 0]
        for rows in right.split(self.settings.batch_size) if len(right) else ():
            labels, keys = (x[rows].to(runtime.device) for x in (self.test.labels, self.test.keys))
            yield rows, images("clean", rows), labels, keys

    def report(self, provenance: Mapping[str, Any], began: float) -> ProbeReport:
        """The table and all behind it."""
        import pandas as pd

        reductions, labels = self.test.reductions, self.test.labels.numpy()
        order = {key: i for i, key in enumerate(self.probes)}
        keys = sorted(self.predictions, key=lambda key: order[key[0], key[1]])
        chosen = {key: probe.strength for key, probe in self.probes.items()}
        table = pd.DataFrame([
            rows_of(
                key, self.predictions[key], labels, network=self.network,
                features=reductions[key[0]].features, used_features=reductions[key[0]].used,
                reduce=reductions[key[0]].text, solver=self.settings.solver,
                strength=chosen[key[0], key[1]],
            )
            for key in keys
        ])  # fmt: skip
        reduced = sum(r.text != "flatten" for r in reductions.values())
        if reduced:
            self.notes.append(
                f"{reduced} of {len(reductions)} layers are wider than their probes, which see "
                "means over positions or projections of them (column reduce)"
            )
        self.notes += at_the_edge(list(chosen.values()), self.settings)
        weights = {
            key: {
                name: getattr(probe, name).cpu().numpy()
                for name in ("weight", "bias", "mean", "scale")
            }
            for key, probe in self.probes.items()
            if isinstance(probe, Linear)
        }
        return ProbeReport(
            table[[*COLUMNS]], {key: self.predictions[key] for key in keys}, labels,
            self.test.ids,
            {"repsim_version": __version__, **provenance, "classes": self.classes,
             "seconds": round(time.monotonic() - began, 2)},
            weights, list(dict.fromkeys(self.notes)),
        )  # fmt: skip
