"""How long a study's stages will take here and how much they will write, before any is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from repsim.attacks import parse_attacks
from repsim.study.measure import own_attack, shared_networks
from repsim.study.networks import training_plan
from repsim.study.settings import UNTRAINED
from repsim.study.stage import Stage
from repsim.study.steps import Architecture, Steps
from repsim.study.study import Study
from repsim.study.training import find_ready, training_images

if TYPE_CHECKING:
    from repsim.study.api import Prepared

CONDITIONS = 4  # clean, noise, own attack, shared
WHOLE = {"autoattack": 600}  # steps that stand for an attack that has none of its own
DONE, READY, TO_DO = "done", "ready", "to do"


def estimate(
    prepared: Prepared, tell: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """A row a stage: name, status, seconds, bytes, about.

    Seconds of a stage that is done are those it took; of the others they come of steps that are
    measured now or were before, on this machine and with this many threads; bytes likewise.

    Args:
        prepared: the study.
        tell: called with a line before something is measured.
    """
    study, records = prepared.study, prepared.records
    cost = _Cost(study, Steps(study, tell))
    rows = []
    for name in prepared.names:
        stage = records.stages[name]
        record = records.read(stage)
        if record is not None and records.done(stage):
            size = sum(entry["bytes"] for entry in record["outputs"].values())
            rows.append(_row(name, DONE, record["seconds"], size, ""))
            continue
        rows.append(_row(name, *cost.of(stage)))
    return rows


def _row(name: str, status: str, seconds: float, size: float, about: str) -> dict[str, Any]:
    return {"name": name, "status": status, "seconds": round(seconds, 1), "bytes": int(size),
            "about": about}  # fmt: skip


Cost = tuple[str, float, float, str]  # status, seconds, bytes, about


class _Cost:
    """Seconds and bytes of stages by their kind."""

    def __init__(self, study: Study, steps: Steps) -> None:
        self.study, self.steps = study, steps
        self.attack = _steps(own_attack(study))

    def of(self, stage: Stage) -> Cost:
        """A stage that is not done."""
        if stage.kind == "train":
            return self._train(str(stage.network))
        samples = self.study.settings.compare.samples
        if stage.network is not None:
            bare = self._bare(stage.network)
            if stage.kind == "evaluate":
                return TO_DO, self._evaluate(bare), 1e3, ""
            return TO_DO, self._probe(bare), 2e6, ""
        if stage.kind == "shared":
            each = [self._bare(name).backward for name in shared_networks(self.study)]
            pixels = self.study.test_images.images[0].numel()
            return TO_DO, samples * self.attack * sum(each), 4.0 * samples * pixels, ""
        if stage.kind in ("compare", "within"):
            return self._compare(stage.kind)
        pairs = len(self.study.networks) ** 2 / 2
        seconds = {"agreement": 0.1 * pairs, "findings": 10.0, "report": 20.0}
        return TO_DO, seconds.get(stage.kind, 0.5), {"report": 6e6}.get(stage.kind, 3e5), ""

    def _bare(self, name: str) -> Architecture:
        return self.steps.architecture(self.study.network(name).arch)

    def _train(self, name: str) -> Cost:
        network = self.study.network(name)
        weights = 4.0 * self._bare(name).parameters
        if network.checkpoint:
            return READY, 0.5, weights, "your own"
        if network.scheme == UNTRAINED:
            return TO_DO, 0.5, weights, "initial weights"
        ready = find_ready(self.study, network)
        if ready is not None:
            return READY, 0.5, weights, f"from {ready.name}"
        plan = training_plan(network, self.study.settings)
        images = len(training_images(self.study, network))
        each = self.steps.training(network)
        seconds, parts = 0.0, []
        for phase, per_image in zip(plan.phases, each, strict=True):
            seconds += phase.epochs * images * per_image
            parts.append(f"{phase.epochs} epochs of {images} at {per_image * 1e3:.2g} ms")
        return TO_DO, seconds, weights * len(plan.phases), ", then ".join(parts)

    def _evaluate(self, bare: Architecture) -> float:
        settings = self.study.settings.evaluate
        steps = [
            _steps(spec)
            for text in settings.attacks
            for spec in parse_attacks(text, eps=self.study.eps)
        ]
        # Images that are fooled leave the batch: about half of the steps are made.
        return settings.samples * (bare.forward + 0.5 * sum(steps) * bare.backward)

    def _probe(self, bare: Architecture) -> float:
        settings = self.study.settings.probe
        images = settings.train + CONDITIONS * self.study.settings.compare.samples
        steps = float(self.attack * self.study.settings.compare.samples)
        others = [name for name in settings.train_on if name != "clean"]
        steps += self.attack * settings.train * bool(others)
        if settings.adaptive:
            steps *= 1 + bare.layers / 2
        # Two passes: statistics, then the products; as much again for the products.
        return 2.0 * images * 2 * bare.forward + steps * bare.backward + 1.0

    def _compare(self, kind: str) -> Cost:
        settings = self.study.settings
        n = settings.compare.samples if kind == "compare" else settings.within.samples
        bare = [self._bare(one.name) for one in self.study.networks]
        count = CONDITIONS * sum(one.layers for one in bare)
        size = count**2 * (16.0 + 4 * settings.compare.groups)
        product = 0.5 * (count * n) ** 2 * self.steps.product()
        if kind == "within":
            return TO_DO, 2 * product, size, f"{count} × {count} layers"
        passes = n * sum(CONDITIONS * one.forward + self.attack * one.backward for one in bare)
        features = CONDITIONS * sum(one.features for one in bare)
        grams = n**2 * features * self.steps.product() / 2  # which are of float32
        return (
            TO_DO, passes + grams + 2 * product, size + 2.0 * count * n**2,
            f"{count} × {count} layers, {n} images",
        )  # fmt: skip


def _steps(spec: Any) -> int:
    """Forwards and backwards an image."""
    known = spec.params.get("steps")
    return int(known or WHOLE.get(spec.name, 20)) * int(spec.params.get("restarts") or 1)


def show_time(seconds: float) -> str:
    """`3 s`, `12 min`, `5 h 20 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes < 6000 else f"{minutes // 60} h"


def total(rows: Sequence[dict[str, Any]]) -> float:
    """Seconds of the stages that are not done."""
    return float(sum(row["seconds"] for row in rows if row["status"] != DONE))
