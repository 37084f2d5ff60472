"""Each probe attacked itself: the encoder up to its layer and the probe are one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim.attacks import AttackSpec, inside, run_attack
from repsim.attacks.activation import activations
from repsim.attacks.table import INNER, MINIMUM_NORM
from repsim.errors import UserError
from repsim.probe.classifiers import Linear
from repsim.probe.reduce import Reduction
from repsim.runtime import Runtime


class ProbedNetwork(nn.Module):
    """Images (batch, c, h, w) -> the logits (batch, classes) of one probe.

    Any attack takes it for a network. It has no parameters of its own: the encoder is behind
    `read`, frozen.
    """

    def __init__(
        self, read: Callable[[Tensor], Tensor], reduction: Reduction, probe: Linear
    ) -> None:
        super().__init__()
        self.read, self.reduction, self.probe = read, reduction, probe

    def forward(self, images: Tensor) -> Tensor:
        """Logits; the forward of the encoder ends at the layer."""
        features = self.reduction(self.read(images))
        with torch.autocast(features.device.type, enabled=False):
            return self.probe.scores(features)


@contextmanager
def probed(
    model: nn.Module, inputs: Tensor, layer: str, reduction: Reduction, probe: Linear
) -> Iterator[ProbedNetwork]:
    """The encoder up to a layer and its probe as one network; the encoder is as before afterwards.

    Args:
        model: pixel model or bare encoder.
        inputs: images, to find the layer with.
        layer: the probe's.
        reduction: what the probe sees of it.
        probe: a linear one.
    """
    with activations(model, inputs, layer) as read:
        yield ProbedNetwork(read, reduction, probe)


def aimed(specs: Sequence[AttackSpec]) -> list[AttackSpec]:
    """Those that can be aimed at a probe: controls and images that are given have no aim."""
    return [spec for spec in specs if not (spec.is_control or spec.fixed)]


def require_adaptive(specs: Sequence[AttackSpec], solver: str, option: str = "--adaptive") -> None:
    """Refuse what cannot be aimed at a probe.

    Args:
        specs: attacks to aim.
        solver: of the probes.
        option: what the user asked for.

    Raises:
        UserError: probes without gradient, no attack, or one that looks elsewhere.
    """
    if solver == "knn":
        raise UserError(
            f"{option} expects probes with a gradient; knn has none; try --solver ridge"
        )
    if not specs:
        raise UserError(f"{option} expects an attack to aim at each probe; add --attack pgd")
    for spec in specs:
        if spec.fixed:
            raise UserError(
                f"{option} expects attacks that can be aimed; the images of {spec.condition} are "
                "given, whatever they are shown to; try --attack pgd"
            )
        if spec.name in INNER or "surrogate" in spec.files:
            raise UserError(
                f"{option} expects attacks on the network that they are aimed at; "
                f"{spec.condition} looks at something else; try --attack pgd"
            )


def attack_probe(
    network: nn.Module,
    spec: AttackSpec,
    batches: Iterator[tuple[Tensor, Tensor, Tensor, Tensor]],
    clean: NDArray[np.int64],
    runtime: Runtime,
    seed: int,
) -> NDArray[np.int64]:
    """Predictions (n,) of one probe on images attacked against itself.

    As `repsim evaluate` counts: an image that the probe gets wrong clean is wrong, and keeps that
    prediction; the others are attacked until an iterate fools it.

    Args:
        network: of `probed`, or any that returns logits.
        spec: the attack.
        batches: rows, images, labels and keys of the images that the probe gets right.
        clean: (n,) predictions of the probe on clean images.
        runtime: precision of the attack; the verdict is in float32.
        seed: of the attack's draws.
    """
    found = clean.copy()
    # An attack of the smallest norm without a bound does not stop at a success.
    smallest = spec.name in MINIMUM_NORM and spec.params.get("eps") is None
    mode = "represent" if smallest else "evaluate"
    for rows, images, labels, keys in batches:
        record: dict[str, Tensor] = {}
        with runtime.autocast():
            attacked = run_attack(
                spec, network, images, labels, ids=keys, seed=seed, mode=mode, record=record
            )
        attacked = inside(spec, images, attacked)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            found[rows.numpy()] = network(attacked).argmax(1).cpu().numpy()
    return found
