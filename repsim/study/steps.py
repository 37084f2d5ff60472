"""What a step of work takes on this machine: measured once, kept in the study's folder."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from repsim.data import draw, to_float
from repsim.hooks import select_layers
from repsim.progress import Silent, Task
from repsim.runtime import Runtime
from repsim.study.networks import StudyNetwork, training_plan
from repsim.study.ready import training_of
from repsim.study.settings import layer_patterns
from repsim.study.study import Study, hardware
from repsim.study.training import bare_network
from repsim.train import Phase, Plan, train

FILE = "steps.json"
BUDGET = 1.0  # seconds that a measured step may take: large networks get smaller batches


@dataclass(frozen=True)
class Architecture:
    """Of one architecture at the study's image size.

    Attributes:
        forward: seconds an image.
        backward: seconds an image, forward and backward to the image.
        layers: how many are compared.
        features: values of all these layers together.
        parameters: how many.
    """

    forward: float
    backward: float
    layers: int
    features: int
    parameters: int


@dataclass
class Steps:
    """Measured steps of a study on this machine.

    Attributes:
        study: the study.
        threads: that a step has.
        tell: called before something is measured.
        again: measure also what was measured before.
    """

    study: Study
    threads: int
    tell: Callable[[str], None] = field(default=lambda line: None)
    again: bool = False
    _measured: set[str] = field(default_factory=set, repr=False)

    def architecture(self, network: StudyNetwork, layers: str) -> Architecture:
        """Passes of a bare network.

        Args:
            network: of that architecture.
            layers: those that count, as a setting has them.
        """
        study = self.study
        about = {
            "arch": network.arch, "arch_args": dict(network.arch_args), "layers": layers,
            "data": study.settings.data_name, "precision": study.runtime().precision,
        }  # fmt: skip
        found = self._kept(about, lambda: _architecture(study, network, layers), network.arch)
        return Architecture(**found)

    def training(self, network: StudyNetwork) -> list[float]:
        """Seconds an image of each phase of a training, attack and augmentation included."""
        plan = training_plan(network, self.study.settings)
        about = {
            "arch": network.arch, "data": self.study.settings.data_name,
            "projector": plan.projector, "dual": plan.dual_norm,
            "precision": self.study.runtime(training=True).precision,
            "phases": [_costs(phase) for phase in plan.phases],
        }  # fmt: skip
        bare = self.architecture(network, self.study.settings.compare.layers)
        found = self._kept(
            about, lambda: {"phases": _training(self.study, network, plan, bare)}, network.name
        )
        return [float(seconds) for seconds in found["phases"]]

    def product(self) -> float:
        """Seconds of one multiplication and addition in a matrix product of float64."""
        return float(self._kept({"product": 1}, _product, "matrix products")["seconds"])

    def _kept(
        self, about: dict[str, Any], measure: Callable[[], dict[str, Any]], what: str
    ) -> dict[str, Any]:
        path = self.study.folder / FILE
        place = hardware(self.study.machine.device)
        text = json.dumps([place, self.threads, about], sort_keys=True, default=list)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            known = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            known = {}
        if key not in known or (self.again and key not in self._measured):
            self.tell(f"measuring {what}, threads: {self.threads}")
            with _threads(self.threads):
                found = measure()
            known[key] = {"of": what, "on": place["processor"], "threads": self.threads, **found}
            path.parent.mkdir(parents=True, exist_ok=True)
            self.study.write_json(FILE, known)
            self._measured.add(key)
        return {k: v for k, v in known[key].items() if k not in ("of", "on", "threads")}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _architecture(study: Study, network: StudyNetwork, layers: str) -> dict[str, Any]:
    runtime = study.runtime()
    few = draw(study.test_images, 32)
    loaded = bare_network(network, few)
    model = runtime.place(loaded.model)
    chosen = select_layers(
        model, runtime.images(to_float(few.images[:8])), layer_patterns(layers)
    ).layers
    images = runtime.images(to_float(few.images[:4]))
    one = _seconds(lambda: _pass(model, images), runtime)
    count = int(min(32, max(4, BUDGET / max(one / 4, 1e-9))))
    images = runtime.images(to_float(few.images[:count]))
    forward = _seconds(lambda: _forward(model, images), runtime)
    backward = _seconds(lambda: _pass(model, images), runtime)
    return {
        "forward": forward / len(images),
        "backward": backward / len(images),
        "layers": len(chosen),
        "features": sum(int(torch.tensor(layer.shape).prod()) for layer in chosen),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
    }


@torch.no_grad()
def _forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    model(images)


def _pass(model: torch.nn.Module, images: torch.Tensor) -> None:
    images = images.detach().requires_grad_()
    torch.autograd.grad(model(images).logsumexp(1).sum(), images)


def _seconds(step: Callable[[], None], runtime: Runtime) -> float:
    """The smaller of two after a first."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        if runtime.device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def _costs(phase: Phase) -> dict[str, Any]:
    """The settings of a phase that a step's time depends on."""
    attack = phase.attack
    return {
        "objective": phase.objective, "trains": phase.trains, "augment": phase.augment,
        "optimizer": phase.optimizer, "batch_size": phase.batch_size,
        "replays": phase.replays, "perturbed": bool(phase.weight_perturbation),
        "attack": attack and [attack.name, attack.params.get("steps"), attack.params.get("loss")],
    }  # fmt: skip


class _Watch(Silent):
    """Takes the time between the steps of each task."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {}

    @contextmanager
    def task(self, what: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Task]:
        times = self.steps.setdefault(what, [time.perf_counter()])
        yield Task(lambda n: times.append(time.perf_counter()))


def _training(study: Study, network: StudyNetwork, plan: Plan, bare: Architecture) -> list[float]:
    """Two steps of each phase after a first one, on a few images."""
    runtime = study.runtime(training=True)
    attack = plan.phases[0].attack
    passes = 2.0 * (1 + (int(attack.params.get("steps") or 1) if attack else 0))
    batch = int(min(32, max(4, BUDGET / (bare.backward * passes))))
    if runtime.device != "cpu":  # where a step does not grow with its images
        batch = max(phase.batch_size for phase in plan.phases)
    images = draw(training_of(study, network).images, 3 * batch)
    short = replace(plan, phases=tuple(
        replace(phase, epochs=1, batch_size=batch, schedule="constant", warmup=0, milestones=(),
                strength_steps=0, watch="")
        for phase in plan.phases
    ))  # fmt: skip
    watch = _Watch()
    with tempfile.TemporaryDirectory() as folder:
        train(
            images, network.arch, Path(folder) / "few.pt", short, runtime=runtime, progress=watch,
            init=bare_network(network, images) if network.init else None,
        )  # fmt: skip
    found = []
    for phase in plan.phases:
        times = watch.steps[f"training, {phase.name}"]
        steps = [b - a for a, b in pairwise(times)]
        found.append(statistics.median(steps[1:] or steps) / batch)
    return found


def _product() -> dict[str, float]:
    a = torch.rand(512, 2048, dtype=torch.float64)
    seconds = _seconds(lambda: torch.mm(a, a.T), Runtime.of("cpu"))  # type: ignore[arg-type]
    return {"seconds": seconds / (512 * 512 * 2048)}
