"""CKA of all layers against all layers: repsim's live comparison and other tools, in turn.

    peers/bin/python analyses/benchmark/similarity.py     # writes similarity.md and .json
    peers/bin/python analyses/benchmark/similarity.py --only pair --rounds 3
    peers/bin/python analyses/benchmark/similarity.py --only resnet50 --full
    python analyses/benchmark/similarity.py --images 64 --rounds 1 --out /tmp    # does it run?

peers.py says how the other tools are installed; those that are not there are left out. Two
networks of CIFAR size with random weights and batch-norm statistics of the images, which are
CIFAR-10's where `repsim --data cifar10` finds them, else random. A ratio is the median over
alternating rounds. Run it on an idle machine; on a busy one --cpu-time counts the processor time
of a single thread instead.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from benchmark import NORMALISATION, hardware, random_images
from floors import forwards
from peers import MISSING, PEERS, Peer, batches, thingsvision
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, draw, load_data, to_float
from repsim.errors import UserError
from repsim.hooks import capture, select_layers
from repsim.live import GramCache, LiveReport, compare_models
from repsim.runtime import Runtime
from repsim.similarity import interval
from repsim.similarity.estimate import normalised
from repsim.similarity.minibatch import BatchSums, batch_hsic, pack

HERE = Path(__file__).parent
BATCH = 256
SLOW = 60.0  # seconds of one call from which on a tool runs once, without a round to warm up
MIB = 2**20
CLOCK = time.perf_counter  # or time.process_time


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, over what."""

    stage: str
    what: str
    goal: str
    ratio: float
    low: float
    high: float
    rounds: int
    seconds: float
    other_seconds: float
    note: str = ""


@dataclass(frozen=True)
class Tool:
    """One tool on one pair of networks; None: not measured.

    Attributes:
        ratio: its time over repsim's beside it.
        peak: MiB above the peak of bare forwards.
        error: the largest difference from the float64 reference of its own estimator.
    """

    name: str
    layers: int
    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int
    peak: float | None
    error: float | None
    note: str


@dataclass(frozen=True)
class Setting:
    """What a run has been asked for."""

    data: ImageData
    images: int
    rounds: int
    networks: int
    full: bool
    without: Sequence[str]
    runtime: Runtime

    @property
    def peers(self) -> list[Peer]:
        """Those that are installed and wanted."""
        return [peer for peer in PEERS if peer.installed and peer.name not in self.without]

    @property
    def batch(self) -> int:
        """Images of a minibatch: of a short run half of them, so that there are two."""
        return min(BATCH, max(4, self.images // 2))


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = CLOCK()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return CLOCK() - began


# --- networks and images


def images_of(samples: int) -> ImageData:
    """CIFAR-10's test images where they are found, else random ones."""
    try:
        return draw(load_data("cifar10", "test"), samples)
    except UserError:
        return random_images(samples)


def networks(count: int, data: ImageData, arch: str = "resnet18") -> list[LoadedModel]:
    """Networks of random weights with the batch-norm statistics of some images."""
    found = []
    images = to_float(data.images[:64])
    for seed in range(count):
        loaded = load_model(
            arch, image_size=32, mean=NORMALISATION[0], std=NORMALISATION[1], seed=seed
        )
        for module in loaded.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of all batches
                module.reset_running_stats()
        loaded.model.train()
        forwards(loaded.model, images.split(32))
        loaded.model.eval()
        found.append(replace(loaded, name=f"seed{seed}"))
    return found


def layer_names(model: nn.Module) -> list[str]:
    """All layers in execution order."""
    return [layer.name for layer in select_layers(model, torch.rand(7, 3, 32, 32), "all").layers]


def plain_copy(one: LoadedModel) -> nn.Module:
    """As a user of another tool has it: its own copy, in the usual memory format."""
    return copy.deepcopy(one.model).to(memory_format=torch.contiguous_format)


def ours(
    models: Sequence[LoadedModel], setting: Setting, *, cache: str | None = None,
    layers: str | Sequence[str] = "all", data: ImageData | None = None, batch: int | None = None,
) -> LiveReport:  # fmt: skip
    return compare_models(
        models, data or setting.data, layers=layers, estimator="minibatch",
        batch_size=batch or setting.batch, cache=GramCache(cache), runtime=setting.runtime,
    )  # fmt: skip


def ready(data: ImageData, batch: int, runtime: Runtime) -> list[Tensor]:
    """The batches as the networks take them."""
    return [runtime.images(to_float(part)) for part in data.images.split(batch)]


# --- the truth


def reference(
    models: Sequence[nn.Module], images: Sequence[Tensor], names: Sequence[str]
) -> np.ndarray:
    """Minibatch CKA of the layers of two networks, in float64 (Nguyen et al. 2021, equation 3).

    The features are the networks' own, copied in the hook. HSIC by the formula of Song et al.
    (2012), term by term; the three HSICs are averaged over the batches first and divided last.
    """
    sums = torch.zeros(2, 2, len(names), len(names), dtype=torch.float64)
    for x in images:
        grams = [features(model, x, names, double_gram) for model in models]
        for i in range(2):
            for j in range(2):
                sums[i, j] += hsic(grams[i], grams[j])
    own = [sums[i, i].diagonal() for i in range(2)]
    return (sums[0, 1] / torch.outer(own[0], own[1]).sqrt()).numpy()


def features(
    model: nn.Module, x: Tensor, names: Sequence[str], keep: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What `keep` makes of each layer's output."""
    modules, found = dict(model.encoder.named_modules()), {}
    handles = [
        modules[name].register_forward_hook(
            lambda module, args, output, name=name: found.update({name: keep(output.clone())})
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def double_gram(output: Tensor) -> Tensor:
    x = output.flatten(1).double()
    gram = x @ x.T
    return gram.fill_diagonal_(0)


def hsic(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Of every pair of Gram matrices without their diagonals."""
    k, other = torch.stack(list(first)), torch.stack(list(second))
    n = k.shape[1]
    trace = k.flatten(1) @ other.flatten(1).T
    middle = torch.outer(k.sum((1, 2)), other.sum((1, 2))) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (k.sum(2) @ other.sum(2).T)
    return (trace + middle - last) / (n * (n - 3))


# --- one pair


def pair(setting: Setting) -> Iterator[Tool]:
    """Total time, memory and error of each tool on two networks."""
    models = networks(2, setting.data)
    names = layer_names(models[0].model)
    loader = batches(to_float(setting.data.images), setting.batch)
    truth = reference(
        [plain_copy(one) for one in models], [x for x, _ in loader], names
    )  # fmt: skip
    cross = np.s_[: len(names), len(names) :]
    report = ours(models, setting)
    error = float(np.abs(report.everything.pairs.value[cross] - truth).max())
    peers = setting.peers
    times: dict[str, list[float]] = {name: [] for name in ("repsim", *(p.name for p in peers))}
    found: dict[str, np.ndarray] = {}
    place: dict[str, list[int]] = {}
    slow: set[str] = set()
    for i in range(setting.rounds + 1):
        times["repsim"].append(seconds(lambda: ours(models, setting)))
        for peer in peers:
            if peer.name in slow:
                continue
            first, second = (plain_copy(one) for one in models)
            place[peer.name] = peer.takes(first.encoder, names)
            wanted = [f"encoder.{names[k]}" for k in place[peer.name]]

            def work(peer=peer, first=first, second=second, wanted=wanted) -> None:
                found[peer.name] = peer.run(first, second, loader, wanted).numpy()

            taken = seconds(work)
            times[peer.name].append(taken)
            if taken > SLOW:
                slow.add(peer.name)
            print(f"  round {i}: {peer.name} {taken:.2f} s, repsim {times['repsim'][-1]:.2f} s",
                  flush=True)  # fmt: skip
    yield Tool(
        "repsim", len(names), statistics.median(times["repsim"][1:]), 1.0, 1.0, 1.0,
        setting.rounds, peak("repsim", setting.images), error,
        "minibatch; centred half products in the hooks, so that no activations are kept; one "
        "product for all pairs, of each network with itself too; intervals by the jackknife; "
        "images from uint8, layers found by a traced forward, both in the time",
    )  # fmt: skip
    for peer in peers:
        taken = times[peer.name]
        if peer.name in slow:
            beside, note = times["repsim"][: len(taken)], f"; {len(taken)} round: {taken[0]:.0f} s"
        else:
            beside, taken, note = times["repsim"][1:], taken[1:], ""
        ratios = sorted(b / a for a, b in zip(beside, taken, strict=True))
        chosen = place[peer.name]
        error = float(np.abs(found[peer.name] - truth[np.ix_(chosen, chosen)]).max())
        yield Tool(
            peer.name, len(chosen), statistics.median(taken), statistics.median(ratios),
            ratios[0], ratios[-1], len(ratios), peak(peer.name, setting.images), error,
            peer.note + note,
        )  # fmt: skip
    if "thingsvision" in setting.without:
        return
    try:
        compare = thingsvision()
    except ImportError:
        return
    yield by_pairs(compare, models, setting, names, statistics.median(times["repsim"][1:]))


def by_pairs(
    compare: Callable[[Tensor, Tensor], float], models: Sequence[LoadedModel], setting: Setting,
    names: Sequence[str], repsim_seconds: float,
) -> Tool:  # fmt: skip
    """thingsvision, which takes a pair of layers' features at a time: some pairs, scaled up.

    A call makes each Gram matrix three times, so its time is a + b·(both widths) in the number of
    features; a and b from layers against their like in the other network give that of all pairs.
    """
    x = to_float(setting.data.images)
    chosen = list(names)[:: max(1, len(names) // 12)]
    flat = [
        features(plain_copy(one), x, chosen, lambda output: output.flatten(1)) for one in models
    ]
    compare(flat[0][0], flat[1][0])
    values: list[float] = []
    widths, taken, errors = [], [], []
    for a, b in zip(*flat, strict=True):
        taken.append(seconds(lambda: values.append(compare(a, b))))  # noqa: B023
        widths.append(a.shape[1] + b.shape[1])
        exact = [[double_gram(one)] for one in (a, b)]
        top = hsic(*exact) / (hsic(exact[0], exact[0]) * hsic(exact[1], exact[1])).sqrt()
        errors.append(abs(values[-1] - float(top)))
    shapes = select_layers(models[0].model, x[:7], "all").layers
    total = sum(int(np.prod(layer.shape)) for layer in shapes)
    slope, start = np.polyfit(widths, taken, 1)
    count = len(names)
    estimate = float(count**2 * max(start, 0.0) + 2 * count * slope * total)
    return Tool(
        "thingsvision", count, estimate, estimate / repsim_seconds, estimate / repsim_seconds,
        estimate / repsim_seconds, 1, None, max(errors),
        f"debiased over all images, a pair of layers at a time from features in memory, each Gram "
        f"matrix made three times a pair; estimated from {len(chosen)} of {count**2} pairs, "
        f"without a forward; its error is of these pairs, against its own estimator",
    )  # fmt: skip


# --- memory


def peak(tool: str, images: int) -> float | None:
    """MiB of a process that runs the tool, above those of bare forwards; None where unknown."""
    command = [sys.executable, __file__, "--memory-of", tool, "--images", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  no memory of {tool}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    print(f"  memory of {tool}: {done.stdout.strip()}", flush=True)
    return float(json.loads(done.stdout.splitlines()[-1])["above"])


def memory_of(tool: str, setting: Setting) -> None:
    """In a process of its own: prints the peak of bare forwards and of the tool."""
    models = networks(2, setting.data)
    names = layer_names(models[0].model)
    few = setting.data.take(torch.arange(8))
    peers = {peer.name: peer for peer in PEERS}
    if tool == "repsim":
        images = ready(setting.data, setting.batch, setting.runtime)
        bare = [setting.runtime.place(one.model) for one in models]
        ours(models, setting, data=few)  # what is imported and kept for good is not counted

        def work() -> object:
            return ours(models, setting)
    else:
        peer: Peer = peers[tool]
        loader = batches(to_float(setting.data.images), setting.batch)
        images = [x for x, _ in loader]
        bare = [plain_copy(one) for one in models]
        wanted = [f"encoder.{names[k]}" for k in peer.takes(bare[0].encoder, names)]
        peer.run(*(plain_copy(one) for one in models), batches(to_float(few.images), 8), wanted)

        def work() -> object:
            return peer.run(*bare, loader, wanted)

    gc.collect()
    reset_peak()
    for model in bare:
        forwards(model, images[:1])
    own = peak_now()
    reset_peak()
    work()
    high = peak_now()
    print(json.dumps({"own": own, "peak": high, "above": high - own}))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_now() -> float:
    """Largest resident set since `reset_peak`, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


# --- the parts


def beyond(setting: Setting) -> Iterator[Row]:
    """What repsim needs beyond the forwards, over plain products."""
    models = networks(2, setting.data)
    names = layer_names(models[0].model)
    x = ready(setting.data, setting.batch, setting.runtime)
    held = features(
        plain_copy(models[0]), to_float(setting.data.images[: setting.batch]), names,
        lambda output: output.flatten(1),
    )  # fmt: skip
    ours(models, setting)
    total, bare, plain, ratios = [], [], [], []
    for i in range(setting.rounds + 1):
        a = seconds(lambda: ours(models, setting))
        b = seconds(lambda: [forwards(one.model, x) for one in models])
        c = seconds(lambda: [plain_products(held, 2) for _ in x])
        print(f"  round {i}: {a:.2f} s, forwards {b:.2f} s, plain products {c:.2f} s", flush=True)
        if i:
            total.append(a), bare.append(b), plain.append(c), ratios.append((a - b) / c)
    yield row(
        "beyond", "beyond the forwards, over plain X·Xᵀ of all layers and V·Vᵀ in float32",
        "≤ 0.75", ratios, [a - b for a, b in zip(total, bare, strict=True)], plain,
        f"in all {statistics.median(total):.2f} s, forwards {statistics.median(bare):.2f} s",
    )  # fmt: skip


def plain_products(held: Sequence[Tensor], models: int) -> Tensor:
    """Full Gram matrices of the layers of some networks, and one product of all of them."""
    rows = [(x @ x.T).flatten() for _ in range(models) for x in held]
    v = torch.stack(rows)
    return v @ v.T


def fixed(setting: Setting) -> Iterator[Row]:
    """V·Vᵀ of the packed Gram matrices, centring and intervals, over a plain V·Vᵀ."""
    models = networks(2, setting.data)
    names = layer_names(models[0].model)
    images = to_float(setting.data.images[: setting.batch])
    whole = torch.stack([
        (x - x.mean(0)) @ (x - x.mean(0)).T
        for one in models
        for x in features(one.model, images, names, lambda output: output.flatten(1))
    ])  # fmt: skip
    packed = torch.stack([pack(gram) for gram in whole])
    flat, count = whole.flatten(1), max(1, setting.images // setting.batch)

    def all_of_it() -> object:
        sums = BatchSums(len(packed), count, 10)
        for batch in range(count):
            sums.add(batch, batch_hsic(packed, setting.batch).numpy())
        value, replicates = normalised(sums.value()), sums.replicates()
        if replicates is None:
            return value
        return interval(value, normalised(replicates), sums.sizes)

    def plain() -> object:
        return [flat @ flat.T for _ in range(count)]

    pairs = []
    for i in range(4 * setting.rounds + 1):
        pairs.append((seconds(all_of_it), seconds(plain)))
        pairs = pairs[1:] if i == 0 else pairs
    yield row(
        "fixed", f"{len(packed)} × {len(packed)} HSICs with centring and intervals, over plain "
        "V·Vᵀ in float32", "", [a / b for a, b in pairs], [a for a, _ in pairs],
        [b for _, b in pairs],
    )  # fmt: skip


# --- many


def twenty(setting: Setting) -> Iterator[Row]:
    """All pairs of many networks, the Gram matrices kept, against a call a pair."""
    count = setting.networks
    models = networks(count, setting.data)
    names = [f"encoder.{name}" for name in layer_names(models[0].model)]
    peer = next(iter(setting.peers), None)
    loader = batches(to_float(setting.data.images), setting.batch)
    rounds = max(1, setting.rounds // 3)
    repsim, again, other, ratios = [], [], [], []
    for i in range(rounds):
        theirs = []
        if peer is not None:
            for first, second in ((0, 1), (0, 0)):
                taken = []
                for _ in range(max(2, setting.rounds // 2)):
                    one = plain_copy(models[first])
                    two = one if first == second else plain_copy(models[second])
                    taken.append(seconds(lambda: peer.run(one, two, loader, names)))  # noqa: B023
                theirs.append(statistics.median(taken))
        with tempfile.TemporaryDirectory() as folder:
            repsim.append(seconds(lambda: ours(models, setting, cache=folder)))
            again.append(seconds(lambda: ours(models, setting, cache=folder)))
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.h5")) / MIB
        if peer is not None:
            other.append(count * (count - 1) / 2 * theirs[0] + count * theirs[1])
            ratios.append(other[-1] / repsim[-1])
        print(f"  round {i}: repsim {repsim[-1]:.1f} s, again {again[-1]:.1f} s, one pair of the "
              f"other {theirs} s", flush=True)  # fmt: skip
    pairs = count * (count + 1) // 2
    if peer is not None:
        yield row(
            "twenty", f"{count} networks, all {pairs} pairs, Gram matrices kept from nothing on, "
            f"against {peer.name}", "≥ 15", ratios, repsim, other,
            f"theirs is {pairs - count} × one pair ({theirs[0]:.2f} s, both networks run anew) + "
            f"{count} × one network with itself ({theirs[1]:.2f} s), not run in full; "
            f"{size:.0f} MiB kept",
        )  # fmt: skip
    ratios = [a / b for a, b in zip(repsim, again, strict=True)]
    yield row(
        "twenty", f"the same {pairs} pairs again, from what was kept", "", ratios, again, repsim,
        "over repsim's own first call; no forward but that of seven images which finds the layers",
    )  # fmt: skip


def resnet50(setting: Setting) -> Iterator[Row]:
    """147 × 147 layers of one network in the live minibatch form."""
    runtime = setting.runtime
    images = 10_000 if setting.full else min(1024, 2 * setting.images)
    data = images_of(images)
    (model,) = networks(1, data, "resnet50")
    # The 147 rows of published figures: one ReLU a block, no pooled features.
    skip = ("*.relu1", "*.relu2", "avgpool")
    names = [
        name for name in layer_names(model.model) if not any(fnmatch(name, one) for one in skip)
    ]
    batch = min(BATCH, images // 2)
    runtime.place(model.model)

    def bare() -> None:
        with torch.no_grad():
            for part in data.images.split(batch):
                model.model(runtime.images(to_float(part.to(runtime.device))))

    def live() -> object:
        return ours([model], setting, layers=names, data=data, batch=batch)

    rounds = 1 if setting.full else max(1, setting.rounds // 2)
    few = data.take(torch.arange(min(images, 2 * 32)))
    ours([model], setting, layers=names, data=few, batch=32)
    pairs = []
    for i in range(rounds):
        pairs.append((seconds(live), seconds(bare)))
        print(f"  round {i}: {pairs[-1][0]:.1f} s, forwards {pairs[-1][1]:.1f} s", flush=True)
    taken = statistics.median(a for a, _ in pairs)
    share = statistics.median(b / a for a, b in pairs)
    used = images // batch * batch
    work, rate = (
        operations(model.model, names, batch, runtime) * used / batch,
        product_rate(runtime),
    )
    note = (
        f"{used / taken:.1f} images/s, {share:.0%} of it forward; 10,000 images "
        + ("measured" if setting.full else f"take {taken * 10_000 / used:.0f} s by this")
        + f"; {work / taken / 1e9:.0f} GFLOP/s of forward and full Gram products, "
        f"{work / taken / rate:.0%} of a float32 matrix product's {rate / 1e9:.0f}"
    )
    yield row(
        "resnet50", f"{len(names)} × {len(names)} layers of a resnet50, {used} images, batches of "
        f"{batch}, over bare forwards", "", [a / b for a, b in pairs], [a for a, _ in pairs],
        [b for _, b in pairs], note,
    )  # fmt: skip


def operations(model: nn.Module, names: Sequence[str], batch: int, runtime: Runtime) -> float:
    """Floating-point operations of a batch: the forward's, and 2·m² for each feature."""
    from torch.utils.flop_counter import FlopCounterMode

    x = runtime.images(torch.rand(1, 3, 32, 32))
    widths: dict[str, int] = {}

    def width(name: str, output: Tensor) -> Tensor:
        widths[name] = output[0].numel()
        return output.new_empty(0)

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, capture(model, names, width):
        model(x)
    return counter.get_total_flops() * batch + 2 * batch**2 * sum(widths.values())


def product_rate(runtime: Runtime) -> float:
    """Operations a second of a large square product in float32."""
    size = 2048 if runtime.device == "cpu" else 16384
    a = torch.rand(size, size, device=runtime.device)
    a @ a
    return 2 * size**3 / min(seconds(lambda: a @ a) for _ in range(5))


# --- the table


def row(
    stage: str, what: str, goal: str, ratios: Sequence[float], taken: Sequence[float],
    other: Sequence[float], note: str = "",
) -> Row:  # fmt: skip
    return Row(
        stage, what, goal, statistics.median(ratios), min(ratios), max(ratios), len(ratios),
        statistics.median(taken), statistics.median(other), note,
    )  # fmt: skip


def markdown(found: dict) -> str:  # type: ignore[type-arg]
    lines = [
        f"{found['hardware']}, torch {found['torch']}; {found['setting']}. Median of alternating "
        "rounds, in brackets the smallest and the largest. Made by similarity.py.",
        "",
    ]
    tools = [Tool(**one) for one in found["tools"]]
    if tools:
        mine = next(one for one in tools if one.name == "repsim")
        lines += [
            "Two networks, all layers of one against all of the other. Goals: 1.3 times as fast as "
            "pytorch-cka, a quarter of its peak memory, error at most 1e-6. The peak is above that "
            "of bare forwards, in a process of its own. The error is the largest of the matrix, "
            "against float64.",
            "",
            "| tool | layers | s | over repsim's | peak MiB | over repsim's | error | |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for one in tools:
            ratio = f"**{one.ratio:.2f}** [{one.low:.2f}, {one.high:.2f}], {one.rounds} rounds"
            high = "" if one.peak is None else f"{one.peak:.0f}"
            more = f"{one.peak / mine.peak:.1f}" if one.peak and mine.peak else ""
            error = "" if one.error is None else f"{one.error:.1e}"
            lines.append(
                f"| {one.name} | {one.layers} | {one.seconds:.2f} | {ratio} | {high} | {more} | "
                f"{error} | {one.note} |"
            )
        lines += ["", *(f"- {name}: {why}." for name, why in found["missing"].items()), ""]
    rows = [Row(**one) for one in found["rows"]]
    if rows:
        lines += [
            "| what | goal | ratio | s | other s | |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    for one in rows:
        lines.append(
            f"| {one.what} | {one.goal} | **{one.ratio:.2f}** [{one.low:.2f}, {one.high:.2f}], "
            f"{one.rounds} rounds | {one.seconds:.2f} | {one.other_seconds:.2f} | {one.note} |"
        )
    return "\n".join(lines) + "\n"


STAGES: dict[str, Callable[[Setting], Iterator[Row | Tool]]] = {
    "pair": pair, "beyond": beyond, "fixed": fixed, "twenty": twenty, "resnet50": resnet50,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=STAGES, help="one part; its rows are replaced")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--networks", type=int, default=20, help="of the part `twenty`")
    parser.add_argument("--full", action="store_true", help="10,000 images of the resnet50")
    parser.add_argument("--without", action="append", default=[], help="leave out a tool")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time of one thread, for a busy machine"
    )
    parser.add_argument("--device", default="cpu", help="of the part `resnet50`")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device != "cpu" and args.only != "resnet50":
        parser.error("--device expects --only resnet50: the other parts are measured on the CPU")
    warnings.simplefilter("ignore")
    if args.cpu_time:
        global CLOCK
        CLOCK, args.threads = time.process_time, 1
    torch.set_num_threads(args.threads)
    setting = Setting(
        images_of(args.images), args.images, args.rounds, args.networks, args.full,
        args.without, Runtime.of(args.device, "float32"),
    )  # fmt: skip
    with threadpool_limits(args.threads):
        if args.memory_of:
            memory_of(args.memory_of, setting)
            return
        made: list[Row | Tool] = []
        for name, stage in STAGES.items():
            if args.only in (None, name):
                for one in stage(setting):
                    print(one, flush=True)
                    made.append(one)
    store(made, args, setting)


def store(made: Sequence[Row | Tool], args: argparse.Namespace, setting: Setting) -> None:
    """Write the table; with --only the other rows stay as they were."""
    where = {
        "hardware": hardware(setting.runtime), "torch": torch.__version__,
        "setting": f"two resnet18 at 32×32, {args.images} images of {setting.data.name}, batches "
        f"of {setting.batch}" + (", processor time of one thread" if args.cpu_time else ""),
    }  # fmt: skip
    path = args.out / "similarity.json"
    before = json.loads(path.read_text()) if path.exists() and args.only else {}
    if any(before.get(key) != value for key, value in where.items()):
        before = {}  # made elsewhere or of other images: not to be mixed
    missing = {peer.name: "not installed" for peer in PEERS if not peer.installed}
    tools = [asdict(one) for one in made if isinstance(one, Tool)]
    rows = [asdict(one) for one in made if isinstance(one, Row)]
    rows += [one for one in before.get("rows", []) if one["stage"] != args.only]
    rows.sort(key=lambda one: list(STAGES).index(one["stage"]))
    found = {
        **where, "tools": tools or before.get("tools", []), "missing": {**missing, **MISSING},
        "rows": rows,
    }  # fmt: skip
    path.write_text(json.dumps(found, indent=1) + "\n")
    table = markdown(found)
    (args.out / "similarity.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
