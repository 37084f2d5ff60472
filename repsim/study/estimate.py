"""How long a study's stages will take here and how much they will write, before any is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from repsim.attacks import parse_attacks
from repsim.live.plan import plan_batches
from repsim.probe import Settings as ProbeSettings
from repsim.probe.settings import DESCENT
from repsim.study.measure import own_attack, shared_networks
from repsim.study.networks import training_plan
from repsim.study.ready import find_ready, training_of
from repsim.study.run import threads_of
from repsim.study.schedule import duration
from repsim.study.settings import UNTRAINED
from repsim.study.stage import Stage
from repsim.study.steps import Architecture, Steps
from repsim.study.study import Study

if TYPE_CHECKING:
    from repsim.study.api import Prepared

CONDITIONS = 4  # clean, noise, own attack, shared
WHOLE = {"autoattack": 600}  # steps that stand for an attack that has none of its own
DONE, READY, TO_DO = "done", "ready", "to do"


@dataclass(frozen=True)
class Estimate:
    """What a study will take here.

    Attributes:
        rows: a row a stage: name, status, seconds, bytes, about.
        seconds: to the end of the last stage that is not done.
    """

    rows: list[dict[str, Any]]
    seconds: float

    @property
    def bytes(self) -> int:
        """All that the stages write."""
        return sum(row["bytes"] for row in self.rows)


def estimate(
    prepared: Prepared,
    *,
    jobs: int = 1,
    again: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """Time and size of the stages, and when the last one will end.

    Seconds of a stage that is done are those it took. Of the others they come of steps that are
    measured now, or were before on this machine, with as many threads as the stage will have;
    bytes likewise. That stages which run at the same time slow one another down is not in it.

    Args:
        prepared: the study.
        jobs: stages at a time.
        again: measure also the steps that were measured before.
        tell: called with a line before something is measured.
    """
    study, records = prepared.study, prepared.records
    shares = {
        alone: _Cost(study, Steps(study, threads_of(1 if alone else jobs), tell, again))
        for alone in (True, False)
    }
    made: dict[str, dict[str, Any]] = {}

    def seconds(name: str, alone: bool) -> float:
        made[name] = _row(name, *shares[alone].of(records.stages[name]))
        return float(made[name]["seconds"])

    for name in prepared.names:
        record = records.read(records.stages[name])
        if record is not None and prepared.done(name):
            size = sum(entry["bytes"] for entry in record["outputs"].values())
            made[name] = _row(name, DONE, record["seconds"], size, "")
    to_do = [name for name in prepared.names if name not in made]
    whole = duration(to_do, records.stages, jobs, seconds)
    return Estimate([made[name] for name in prepared.names], round(whole, 1))


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
            return TO_DO, self._probe(stage.network), 2e6, ""
        if stage.kind == "shared":
            each = [self._bare(name).backward for name in shared_networks(self.study)]
            pixels = self.study.test_images.images[0].numel()
            return TO_DO, samples * self.attack * sum(each), 4.0 * samples * pixels, ""
        if stage.kind in ("compare", "within"):
            return self._compare(stage.kind)
        pairs = len(self.study.networks) ** 2 / 2
        seconds = {"agreement": 0.1 * pairs, "findings": 10.0, "report": 20.0}
        return TO_DO, seconds.get(stage.kind, 0.5), {"report": 6e6}.get(stage.kind, 3e5), ""

    def _bare(self, name: str, layers: str = "") -> Architecture:
        """Of the layers that are compared, or of others."""
        layers = layers or self.study.settings.compare.layers
        return self.steps.architecture(self.study.network(name), layers)

    @cached_property
    def _all(self) -> list[Architecture]:
        return [self._bare(one.name) for one in self.study.networks]

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
        images = len(training_of(self.study, network).images)
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

    def _probe(self, name: str) -> float:
        settings = self.study.settings.probe
        bare, samples = self._bare(name, settings.layers), self.study.settings.compare.samples
        others = [one for one in settings.train_on if one != "clean"]
        steps = float(self.attack * (samples + settings.train * bool(others)))
        if settings.adaptive:
            steps += self.attack * samples * bare.layers / 2
        tested = 2.0 * CONDITIONS * samples * bare.forward
        fit = self._fit(bare, settings.train * (1 + bool(others)), len(settings.train_on))
        return fit + tested + steps * bare.backward + 1.0

    def _fit(self, bare: Architecture, images: int, trainings: int) -> float:
        """Training of one network's probes."""
        probe = self.study.settings.probe
        settings = ProbeSettings(solver=probe.solver, **probe.options).checked()
        if settings.solver not in DESCENT:
            # Two passes: statistics, then the products; as much again for the products.
            return 4.0 * images * bare.forward
        classes = len(self.study.test_images.classes)
        # Scores and gradient, both in float32, which takes half the time.
        heads = images * bare.features * classes * len(settings.strengths) * trainings
        held = settings.hold and 4 * images * bare.features <= settings.memory
        passes = 1 if held else settings.epochs
        return settings.epochs * heads * self.steps.product() + passes * images * bare.forward

    def _compare(self, kind: str) -> Cost:
        settings = self.study.settings.compare
        count = CONDITIONS * sum(one.layers for one in self._all)
        size = count**2 * (16.0 + 4 * settings.groups)
        n, about = settings.samples, f"{count} × {count} layers"
        if kind == "compare":
            return (
                TO_DO, self._grams(n) + 2 * self._product(n), size + 2.0 * count * n**2,
                f"{about}, {n} images",
            )  # fmt: skip
        few = min(self.study.settings.within.samples, n)
        # Those of the comparison are taken where each of them holds the same images, all of them.
        kept = few == n and self._part(n) == n
        seconds = 2 * self._product(few) + (0.0 if kept else self._grams(few))
        return TO_DO, seconds, size + (0.0 if kept else 2.0 * count * few**2), about

    def _part(self, samples: int) -> int:
        """Samples in each Gram matrix of a comparison."""
        settings = self.study.settings.compare
        count = CONDITIONS * sum(one.layers for one in self._all)
        widest = max(one.features for one in self._all)
        return plan_batches(
            samples, settings.batch_size, [widest], count, settings.memory, None
        ).size

    def _grams(self, samples: int) -> float:
        """The passes of all networks, their attacks, and the Gram matrices, in float32."""
        passes = sum(CONDITIONS * one.forward + self.attack * one.backward for one in self._all)
        features = CONDITIONS * sum(one.features for one in self._all)
        grams = self._part(samples) * features * self.steps.product() / 2
        return samples * (passes + grams)

    def _product(self, samples: int) -> float:
        """All Gram matrices against all."""
        count = CONDITIONS * sum(one.layers for one in self._all)
        return 0.5 * count**2 * samples * self._part(samples) * self.steps.product()


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
