"""Selective retraining: all after a layer is initialised anew and trained, the rest is frozen.

The other way to ask where robustness sits: what the frozen layers hand on is robust if a rest that
is trained on clean images alone comes out robust.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim import __version__
from repsim.attacks import AttackSpec, run_attack
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, to_float
from repsim.errors import UserError
from repsim.extract.conditions import asked_conditions
from repsim.hooks import unwrap
from repsim.hooks.trace import Call, trace_calls
from repsim.keyed import mix_seed
from repsim.models import build_model
from repsim.optim import make_optimizer, make_schedule
from repsim.probe.adaptive import aimed, attack_probe, require_adaptive
from repsim.probe.checks import check_splits
from repsim.probe.descent import epoch_rows
from repsim.probe.report import COLUMNS, Key, ProbeReport, rows_of
from repsim.probe.settings import Training, trainings
from repsim.probe.source import LiveSource
from repsim.progress import Progress, Silent
from repsim.registry import near
from repsim.runtime import Runtime

LR, DECAY = 0.05, 5e-4


def retrain(
    model: LoadedModel,
    train: ImageData,
    test: ImageData,
    *,
    layers: Sequence[str],
    attacks: Sequence[AttackSpec] = (),
    train_on: Sequence[str] = ("clean",),
    control: bool = True,
    epochs: int = 10,
    lr: float = 0.0,
    batch_size: int = 128,
    runtime: Runtime | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeReport:
    """For each layer and training: the network retrained from there on, clean and attacked.

    Frozen layers keep weights and statistics. The others get the weights of a new network of this
    seed and are trained end to end on cross-entropy by SGD (momentum 0.9, decay 5e-4, one cycle),
    without augmentation; attacked training images are made on the network as it is at that step.

    Args:
        model: the network.
        train, test: images; see `repsim.probe.probe_live`.
        layers: each the last one that stays as it is; names that `repsim layers` lists.
        attacks: conditions of the test images: made on the network as it was (transfer), and, but
            for those whose images are given, on the retrained one (adaptive).
        train_on: "clean", an attack's condition, or "both:CONDITION".
        control: also test on noise of the first attack's size.
        epochs, lr, batch_size: of the training; a rate of 0 is `LR`.
        runtime: device, precision, layout.
        seed: of new weights, order and attacks.
        progress: told of every batch.

    Returns:
        A report whose solver is "retrain" and whose `layer` is the last frozen one.

    Raises:
        UserError: no such layer, one after which nothing is left to train, or settings and images
            as in `probe_live`.
    """
    import pandas as pd

    began, notes = time.monotonic(), list[str]()
    runtime, progress = runtime or Runtime.of(precision="float32"), progress or Silent()
    lr = lr or LR
    if not 0 < lr < float("inf") or epochs < 1 or batch_size < 2:
        raise UserError(
            f"retraining expects --lr above 0, --epochs of 1 and --batch-size of 2 at least; got "
            f"{lr:g}, {epochs} and {batch_size}"
        )
    model.require_head("retraining")
    specs = aimed(attacks)
    if specs:
        require_adaptive(specs, "retrain", "--retrain-from")
    kept = check_splits(train.labels, test.labels, train.ids, test.ids, notes)
    test = test if len(kept) == len(test) else test.take(kept)
    kinds = {"clean": "clean", **{spec.condition: "attack" for spec in specs}}
    asked = trainings(train_on, kinds)
    original = runtime.place(model.model)
    sample = runtime.images(to_float(train.images[:8]))
    calls = {layer: _after(original, sample, layer) for layer in layers}
    predictions: dict[Key, NDArray[np.int64]] = {}
    shapes: dict[str, int] = {}
    with ExitStack() as stack:
        sources = asked_conditions(
            attacks, original, test, runtime, seed, control, {}, None, notes, stack
        )
        tests = LiveSource(model, test, sources, {}, runtime, batch_size, progress)
        work = len(layers) * len(asked) * epochs * len(train)
        with progress.task("retraining", work, unit="img") as task:
            for layer in layers:
                shapes[layer], after = calls[layer]
                for one in asked:
                    with _renewed(model, after, runtime, seed) as (network, trained):
                        steps = _batches(train, epochs, batch_size, seed)
                        count = epochs * -(-len(train) // batch_size)
                        optimiser = make_optimizer(trained, name="sgd", lr=lr, weight_decay=DECAY)
                        schedule = make_schedule(optimiser, name="onecycle", lr=lr, steps=count)
                        for step, rows in enumerate(steps):
                            loss = _loss(
                                network, after, train, rows, one, specs, runtime, seed, step
                            )
                            optimiser.zero_grad()
                            loss.backward()
                            optimiser.step()
                            schedule.step()
                            task.advance(len(rows))
                        network.eval()
                        if not all(bool(p.isfinite().all()) for p in trained):
                            raise UserError(
                                f"retraining from {layer} expects weights that stay finite; they "
                                "did not; try a smaller --lr"
                            )
                        for key, found in _tested(network, tests, specs, runtime, seed).items():
                            predictions[layer, one.name, *key] = found
    labels = test.labels.numpy()
    table = pd.DataFrame([
        rows_of(
            key, found, labels, network=model.name, features=shapes[key[0]],
            used_features=shapes[key[0]], reduce="flatten", solver="retrain", strength=0.0,
        )
        for key, found in predictions.items()
    ])  # fmt: skip
    return ProbeReport(
        table[[*COLUMNS]], predictions, labels, test.ids,
        {
            "repsim_version": __version__,
            "models": {model.name: {"sha256": model.sha256, "arch": model.meta.get("arch")}},
            "train": {"name": train.name, "split": train.split, "samples": len(train),
                      "fingerprint": train.fingerprint},
            "test": {"name": test.name, "split": test.split, "samples": len(test),
                     "fingerprint": test.fingerprint},
            "attacks": {one.name: one.attack for one in sources},
            "train_on": [one.name for one in asked],
            "settings": {"solver": "retrain", "epochs": epochs, "lr": lr,
                         "batch_size": batch_size, "seed": seed},
            "seed": seed, "precision": runtime.precision, "live": True,
            "classes": len(test.classes),
            "seconds": round(time.monotonic() - began, 2),
        },
        {}, list(dict.fromkeys(notes)),
    )  # fmt: skip


def _after(model: nn.Module, inputs: Tensor, layer: str) -> tuple[int, set[str]]:
    """Values of a layer's output, and the modules with weights that only start after it."""
    traced = trace_calls(model, inputs)
    places = {call.name: i for i, call in enumerate(traced.calls)}
    layers = [traced.layer(i).name for i in traced.places]
    if layer not in layers:
        raise UserError(
            f"--retrain-from expects a layer that repsim layers lists; got {layer!r}; near: "
            f"{near(layer, layers)}"
        )
    place = places[layer]

    def starts_after(call: Call) -> bool:
        return call.started > place

    later = {call.base for call in traced.calls if call.leaf and starts_after(call)}
    earlier = {call.base for call in traced.calls if call.leaf and not starts_after(call)}
    after = {
        name for name in later - earlier
        if any(True for _ in traced.modules[name].parameters(recurse=False))
    }  # fmt: skip
    if not after:
        raise UserError(
            f"--retrain-from expects a layer with weights after it; {layer} is followed by none; "
            "name an earlier one"
        )
    shape = traced.layer(place).shape
    return int(np.prod(shape)), after


@contextmanager
def _renewed(
    model: LoadedModel, after: set[str], runtime: Runtime, seed: int
) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """A copy of the network, its later modules new, and their parameters."""
    meta = model.meta
    network = copy.deepcopy(model.model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        new = build_model(
            meta["arch"], classes=len(meta["classes"]), channels=meta["channels"],
            image_size=meta["image_size"], **meta["arch_args"],
        )  # fmt: skip
    mine, theirs = dict(unwrap(network).named_modules()), dict(new.named_modules())
    network.requires_grad_(False)
    trained = []
    for name in sorted(after):
        mine[name].load_state_dict(theirs[name].state_dict())
        for parameter in mine[name].parameters(recurse=False):
            parameter.requires_grad_(True)
            trained.append(parameter)
    yield runtime.place(network), trained


def _batches(data: ImageData, epochs: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    everything = torch.arange(len(data))
    for epoch in range(epochs):
        yield from epoch_rows(data.keys, everything, batch_size, seed, epoch)


def _loss(
    network: nn.Module, after: set[str], data: ImageData, rows: Tensor, training: Training,
    specs: Sequence[AttackSpec], runtime: Runtime, seed: int, step: int,
) -> Tensor:  # fmt: skip
    """Mean cross-entropy of the training's conditions; new layers take batch statistics."""
    labels = data.labels[rows].to(runtime.device)
    keys = data.keys[rows].to(runtime.device)
    clean = runtime.images(to_float(data.images[rows].to(runtime.device)))
    total = torch.zeros((), device=runtime.device)
    for condition in training.conditions:
        images = clean
        for spec in specs:
            if spec.condition == condition:
                network.eval()
                with runtime.autocast():
                    images = run_attack(
                        spec, network, clean, labels, ids=keys, seed=mix_seed(seed, step),
                        mode="last",
                    )  # fmt: skip
        network.eval()
        modules = dict(unwrap(network).named_modules())
        for name in after:
            # One image has no batch statistics.
            modules[name].train(len(rows) > 1)
        with runtime.autocast():
            total = total + F.cross_entropy(network(images).float(), labels)
    return total / len(training.conditions)


def _tested(
    network: nn.Module, tests: LiveSource, specs: Sequence[AttackSpec], runtime: Runtime, seed: int
) -> dict[tuple[str, str], NDArray[np.int64]]:
    """Predictions (n,) by (test, attack): clean, noise, transfer, adaptive."""
    n = len(tests.labels)
    found: dict[tuple[str, str], NDArray[np.int64]] = {}
    for condition, kind in tests.kinds.items():
        predicted = []
        for rows in torch.arange(n).split(tests.batch_size):
            with torch.no_grad():
                predicted.append(network(tests.inputs(condition, rows)).argmax(1).cpu())
        found[condition, "transfer" if kind == "attack" else "none"] = torch.cat(predicted).numpy()
    clean = found["clean", "none"]
    for spec in specs:
        right = torch.nonzero(torch.from_numpy(clean) == tests.labels)[:, 0]
        batches = (
            (rows, tests.inputs("clean", rows), tests.labels[rows].to(runtime.device),
             tests.keys[rows].to(runtime.device))
            for rows in right.split(tests.batch_size)
            if len(rows)
        )  # fmt: skip
        found[spec.condition, "adaptive"] = attack_probe(
            network, spec, batches, clean, runtime, seed
        )
    return found
