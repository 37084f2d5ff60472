"""Attacks made on each of several networks and shown to all of them: the transfer matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim.attacks import AttackSpec, inside, run_attack
from repsim.checkpoint import LoadedModel
from repsim.compare import compare_all
from repsim.data import ImageData, batches, to_float
from repsim.errors import UserError
from repsim.evaluate import accuracy_interval, require_logits
from repsim.hooks import capture, select_layers
from repsim.progress import Progress, Silent
from repsim.reduce import parse_reduce
from repsim.runtime import Runtime
from repsim.similarity import ArrayRepresentation


@dataclass(frozen=True)
class Transfer:
    """What `cross` found: images made on network i (rows), shown to network j (columns).

    Attributes:
        models: names.
        attack: the attack.
        samples: images.
        clean: (models,) clean accuracy.
        accuracy: (models, models) fraction of all images that are right clean and attacked.
        intervals: (models, models, 2) 95%, over images.
        alignment: (models, models) mean over layers of CKA(clean, attacked) inside network j.
        last_third: (models, models) the same over the last third of the layers.
    """

    models: list[str]
    attack: AttackSpec
    samples: int
    clean: np.ndarray
    accuracy: np.ndarray
    intervals: np.ndarray
    alignment: np.ndarray
    last_third: np.ndarray

    def table(self) -> pd.DataFrame:
        """A row a pair: made_on, shown_to, accuracy with its interval, alignment."""
        rows = [
            {
                "made_on": made, "shown_to": shown, "clean_accuracy": self.clean[j],
                "robust_accuracy": self.accuracy[i, j],
                "robust_accuracy_low": self.intervals[i, j, 0],
                "robust_accuracy_high": self.intervals[i, j, 1],
                "alignment_mean": self.alignment[i, j],
                "alignment_last_third": self.last_third[i, j],
            }
            for i, made in enumerate(self.models)
            for j, shown in enumerate(self.models)
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """The matrices as plain values, rows by the network that the images were made on."""
        return {
            "models": self.models,
            "attack": self.attack.to_json(),
            "samples": self.samples,
            "clean_accuracy": self.clean.tolist(),
            "robust_accuracy": self.accuracy.tolist(),
            "robust_accuracy_ci": self.intervals.tolist(),
            "alignment_mean": self.alignment.tolist(),
            "alignment_last_third": self.last_third.tolist(),
        }


def cross(
    networks: Sequence[LoadedModel],
    data: ImageData,
    attack: AttackSpec,
    *,
    layers: str = "blocks",
    reduce: str = "flatten",
    batch_size: int = 256,
    runtime: Runtime | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Transfer:
    """Make the attack on each network at full strength, and show its images to every network.

    Args:
        networks: two or more, of different names, that take these images and have these classes.
        data: the images.
        attack: how they are attacked.
        layers: which layers' CKA(clean, attacked) is averaged; see `select_layers`.
        reduce: what is kept of an activation; "avgpool" where memory is short: all layers of one
            network are held for all conditions.
        batch_size: images at once; changes no random draw.
        runtime: device, precision, layout.
        seed: of the attack's draws.
        progress: told of every batch.

    Raises:
        UserError: fewer than two networks or two of one name; no linear head; an attack without
            a size.
    """
    names = [network.name for network in networks]
    if len(networks) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"--cross expects two or more checkpoints of different names; got {', '.join(names)}"
        )
    if attack.files:
        raise UserError(
            f"--cross makes the attack on each network in turn; got {attack.text}: leave "
            f"{', '.join(attack.files)} away"
        )
    runtime, progress = runtime or Runtime.of(), progress or Silent()
    for network in networks:
        network.require_head("a transfer matrix")
        runtime.place(network.model).eval()
    conditions = {"clean": to_float(data.images)}
    for network in networks:
        conditions[_on(network.name)] = _attacked(
            network, data, attack, batch_size, runtime, seed, progress
        )
    count = len(networks)
    clean, accuracy = np.zeros(count), np.zeros((count, count))
    intervals = np.zeros((count, count, 2))
    alignment, last_third = np.zeros((count, count)), np.zeros((count, count))
    for j, network in enumerate(networks):
        right, representations = _seen(
            network, data, conditions, layers, reduce, batch_size, runtime, progress
        )
        clean[j] = right["clean"].mean()
        only = [((network.name, "clean"), (network.name, _on(made))) for made in names]
        everything = compare_all(representations, only=only, groups=1, progress=progress)
        for i, made in enumerate(names):
            both = right["clean"] & right[_on(made)]
            accuracy[i, j] = both.mean()
            intervals[i, j] = accuracy_interval(int(both.sum()), len(both))
            found = everything.alignment("clean", _on(made))
            alignment[i, j] = found["alignment_mean"]
            last_third[i, j] = found["alignment_last_third"]
    return Transfer(names, attack, len(data), clean, accuracy, intervals, alignment, last_third)


def _on(name: str) -> str:
    """The condition of images made on a network, whatever its name."""
    return f"made on {name}"


def _attacked(
    network: LoadedModel, data: ImageData, attack: AttackSpec, batch_size: int, runtime: Runtime,
    seed: int, progress: Progress,
) -> Tensor:  # fmt: skip
    """All images attacked on one network, (samples, c, h, w) float on the host."""
    parts = []
    with progress.task(f"{attack.condition} on {network.name}", len(data), unit="img") as task:
        for images, labels, keys in batches(data, batch_size, runtime.device):
            with runtime.autocast():
                found = run_attack(
                    attack, network.model, runtime.images(images), labels, ids=keys, seed=seed
                )
            parts.append(inside(attack, runtime.images(images), found).float().cpu())
            task.advance(len(labels))
    return torch.cat(parts)


def _seen(
    network: LoadedModel, data: ImageData, conditions: dict[str, Tensor], layers: str, reduce: str,
    batch_size: int, runtime: Runtime, progress: Progress,
) -> tuple[dict[str, np.ndarray], list[ArrayRepresentation]]:  # fmt: skip
    """Which images are right under each condition, and the activations of every layer."""
    how = parse_reduce(reduce)
    first = runtime.images(conditions["clean"][:8])
    names = [layer.name for layer in select_layers(network.model, first, layers).layers]
    right: dict[str, np.ndarray] = {}
    representations = []
    with progress.task(
        f"layers of {network.name}", len(data) * len(conditions), unit="img"
    ) as task:
        for condition, images in conditions.items():
            kept: dict[str, list[Tensor]] = {name: [] for name in names}
            wrong = []
            for x, y in zip(images.split(batch_size), data.labels.split(batch_size), strict=True):
                with (
                    capture(network.model, names, lambda name, output: how(output)) as captured,
                    torch.no_grad(),
                    runtime.autocast(),
                ):
                    logits = network.model(runtime.images(x))
                    for name in names:
                        kept[name].append(captured[name].cpu())
                require_logits(logits, y.to(logits.device), len(data.classes), network.name)
                wrong.append(logits.argmax(1).cpu() != y)
                task.advance(len(y))
            right[condition] = ~torch.cat(wrong).numpy()
            representations += [
                ArrayRepresentation(
                    torch.cat(parts).numpy(), model=network.name, condition=condition,
                    layer=name,
                )
                for name, parts in kept.items()
            ]  # fmt: skip
    return right, representations
