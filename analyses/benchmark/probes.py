"""An epoch of the probes of all layers: over a bare forward epoch, and against one at a time.

    python analyses/benchmark/probes.py                  # writes probes.md and probes.json
    python analyses/benchmark/probes.py --cpu-time       # processor time, on a busy machine
    python analyses/benchmark/probes.py --images 64 --rounds 1 --out /tmp    # does it run?

A resnet18 of CIFAR size with random weights; images are CIFAR-10's where `repsim --data cifar10`
finds them, else random. Nothing is held between epochs: the network runs in each. Layers that hand
on one output share a probe, as in `fit_probes`. "One at a time" is what is written by hand: for a
layer a loop of its own with a hook on it, a forward of the whole frozen network, `nn.Linear`
on the flattened output and Adam, without standardisation.
Its time for all layers is the sum over all of them, each measured. A ratio is the median of
alternating rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmark import NORMALISATION, hardware, random_images
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, draw, load_data, to_float
from repsim.errors import UserError
from repsim.extract.conditions import Source as Condition
from repsim.hooks import select_layers
from repsim.probe.descent import step_rule, train_step
from repsim.probe.heads import Heads
from repsim.probe.reduce import choose_reduction
from repsim.probe.settings import Settings, Training
from repsim.probe.source import LiveSource
from repsim.progress import Silent
from repsim.runtime import Runtime

HERE = Path(__file__).parent
BATCH, CLASSES = 128, 10
CLOCK = time.perf_counter  # or time.process_time
CLEAN = Condition("clean", "clean", None, "linf", lambda batch: (batch.images, None))


@dataclass(frozen=True)
class Row:
    """What was measured over what: seconds of an epoch, and their ratio."""

    what: str
    layers: str
    features: str
    goal: str
    ratio: float
    low: float
    high: float
    rounds: int
    seconds: float
    other_seconds: float


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = CLOCK()
    work()
    return CLOCK() - began


def images_of(samples: int) -> ImageData:
    """CIFAR-10's training images where they are found, else random ones."""
    try:
        return draw(load_data("cifar10", "train"), samples)
    except UserError:
        return random_images(samples)


def network(data: ImageData, runtime: Runtime) -> LoadedModel:
    """Random weights with the batch-norm statistics of some images."""
    loaded = load_model("resnet18", image_size=32, mean=NORMALISATION[0], std=NORMALISATION[1])
    for module in loaded.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            module.reset_running_stats()
    with torch.no_grad():
        loaded.model.train()(to_float(data.images[:64]))
    loaded.model.eval()
    runtime.place(loaded.model)
    return loaded


def source_of(
    loaded: LoadedModel, data: ImageData, layers: str, reduce: str, runtime: Runtime
) -> LiveSource:
    chosen = select_layers(loaded.model, runtime.images(to_float(data.images[:8])), layers).layers
    reductions = {one.name: choose_reduction(reduce, one.shape, 1024) for one in chosen}
    return LiveSource(loaded, data, [CLEAN], reductions, runtime, BATCH, Silent())


def batches(data: ImageData, batch: int) -> Sequence[Tensor]:
    return torch.arange(len(data)).split(batch)


def bare(source: LiveSource, batch: int) -> None:
    """Forwards of all images."""
    with torch.no_grad():
        for rows in batches(source.data, batch):
            source.loaded.model(source.inputs("clean", rows))


class Ours:
    """Epochs of the probes of all layers, of each one with every strength."""

    def __init__(
        self, source: LiveSource, solver: str, strengths: tuple[float, ...] = (0.0,)
    ) -> None:
        settings = Settings(solver=solver, strengths=strengths).checked()
        repeats = source.repeats()
        self.source, self.names = source, [x for x in source.reductions if x not in repeats]
        self.heads = Heads(source, self.names, [Training("clean", ("clean",))], CLASSES, settings)
        self.optimiser = step_rule(self.heads, settings)

    def epoch(self, batch: int, *, first: bool) -> None:
        for rows in batches(self.source.data, batch):
            train_step(
                self.heads, self.source, ["clean"], rows, self.names, self.optimiser, first=first
            )


def one_at_a_time(source: LiveSource, name: str, batch: int) -> None:
    """An epoch of one layer's probe, as it is written by hand."""
    model = source.loaded.model
    found: list[Tensor] = []
    base, _, call = name.partition("@")
    module = dict(model.encoder.named_modules())[base]
    handle = module.register_forward_hook(lambda _, args, output: found.append(output))
    head = nn.Linear(source.reductions[name].features, CLASSES)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    try:
        for rows in batches(source.data, batch):
            found.clear()
            with torch.no_grad():
                model(source.inputs("clean", rows))
            features = found[int(call or 1) - 1].flatten(1)
            loss = F.cross_entropy(head(features), source.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    finally:
        handle.remove()


def rows_of(setting: argparse.Namespace, data: ImageData, runtime: Runtime) -> Iterator[Row]:
    loaded = network(data, runtime)
    for layers in ("blocks", "all"):
        for solver, reduce, strengths in (
            ("adam", "flatten", (0.0,)), ("adam", "auto", (0.0,)), ("sgd", "flatten", (0.0,)),
            ("adam", "flatten", ()),
        ):  # fmt: skip
            source = source_of(loaded, data, layers, reduce, runtime)
            count = f"{layers}, {len(source.reductions)}"
            width = f"{reduce}, {sum(r.used for r in source.reductions.values()):,}"
            ours = Ours(source, solver, strengths)
            name = solver if strengths else f"{solver}, its default strengths side by side"
            firsts, laters, floors = [], [], []
            bare(source, BATCH)
            for _ in range(setting.rounds):
                floors.append(seconds(lambda: bare(source, BATCH)))  # noqa: B023
                firsts.append(seconds(lambda: ours.epoch(BATCH, first=True)))  # noqa: B023
                laters.append(seconds(lambda: ours.epoch(BATCH, first=False)))  # noqa: B023
            for what, taken in (("first epoch", firsts), ("later epoch", laters)):
                yield row(f"{name}, {what}, over bare forwards", count, width, "≤ 1.5", taken,
                          floors)  # fmt: skip
    for layers in ("blocks", "all"):
        part = data.take(torch.arange(min(len(data), setting.slow_images)))
        batch = min(BATCH, max(2, len(part) // 2))
        source = source_of(loaded, part, layers, "flatten", runtime)
        ours = Ours(source, "adam")
        ours.epoch(batch, first=True)
        taken, other = [], []
        for _ in range(min(2, setting.rounds)):
            taken.append(seconds(lambda: ours.epoch(batch, first=False)))  # noqa: B023
            other.append(
                sum(seconds(lambda: one_at_a_time(source, x, batch)) for x in source.reductions)  # noqa: B023
            )
        yield row(
            f"one probe at a time over all at once ({len(part)} images, batches of {batch})",
            f"{layers}, {len(source.reductions)}",
            f"flatten, {sum(r.used for r in source.reductions.values()):,}", "≥ 10", other, taken,
        )  # fmt: skip


def row(
    what: str, layers: str, features: str, goal: str, taken: Sequence[float], other: Sequence[float]
) -> Row:
    ratios = [a / b for a, b in zip(taken, other, strict=True)]
    return Row(what, layers, features, goal, statistics.median(ratios), min(ratios), max(ratios),
               len(ratios), statistics.median(taken), statistics.median(other))  # fmt: skip


def markdown(found: dict) -> str:  # type: ignore[type-arg]
    lines = [
        f"{found['hardware']}, torch {found['torch']}; {found['setting']}. Median of alternating "
        "rounds, in brackets the smallest and the largest. Made by probes.py.",
        "",
        "| what | layers | features an image | goal | ratio | s | other s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in (Row(**values) for values in found["rows"]):
        lines.append(
            f"| {one.what} | {one.layers} | {one.features} | {one.goal} | **{one.ratio:.2f}** "
            f"[{one.low:.2f}, {one.high:.2f}], {one.rounds} rounds | {one.seconds:.2f} | "
            f"{one.other_seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--slow-images", type=int, default=128, help="of one probe at a time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time of one thread, for a busy machine"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    args = parser.parse_args()
    if args.cpu_time:
        global CLOCK
        CLOCK, args.threads = time.process_time, 1
    torch.set_num_threads(args.threads)
    runtime = Runtime.of("cpu", "float32")
    data = images_of(args.images)
    with threadpool_limits(args.threads):
        made = []
        for one in rows_of(args, data, runtime):
            print(one, flush=True)
            made.append(one)
    found = {
        "hardware": hardware(runtime), "torch": torch.__version__,
        "setting": f"a resnet18 at 32×32, {len(data)} images of {data.name}, batches of {BATCH}, "
        f"{CLASSES} classes" + (", processor time of one thread" if args.cpu_time else ""),
        "rows": [asdict(one) for one in made],
    }  # fmt: skip
    (args.out / "probes.json").write_text(json.dumps(found, indent=1) + "\n")
    table = markdown(found)
    (args.out / "probes.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
