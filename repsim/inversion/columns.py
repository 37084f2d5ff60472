"""One inversion of one network, seen by all networks: a column of every matrix."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim.attacks.gradient import frozen
from repsim.errors import UserError
from repsim.inversion.control import noise_at_distance
from repsim.inversion.features import read_all
from repsim.inversion.invert import invert
from repsim.progress import Progress
from repsim.similarity import ArrayRepresentation, Pairs, cka_pairs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """A similarity for each of M networks.

    Attributes:
        value: (M,).
        replicates: (G, M) the same without each jackknife group of images, or None.
    """

    value: Array
    replicates: Array | None


@dataclass(frozen=True)
class Column:
    """What came of one inversion; see `repsim.inversion.shared.SharedInvariances`."""

    stir: Cells
    inverted_cka: Cells
    noise: Cells
    distance: Array
    start_distance: Array
    pixels: Array
    predictions: dict[str, NDArray[np.int64]]
    images: Tensor


@dataclass(frozen=True)
class Panel:
    """The networks that look at images.

    Attributes:
        networks: M by name.
        layers: the layer of each.
        images: X, (samples, c, h, w).
        estimator: of CKA.
        groups: jackknife groups.
        batch_size: images at once.
        classifiers: names of the networks whose outputs are logits.
    """

    networks: Mapping[str, nn.Module]
    layers: Sequence[str]
    images: Tensor
    estimator: str
    groups: int
    batch_size: int
    classifiers: Collection[str]

    @cached_property
    def clean(self) -> list[ArrayRepresentation]:
        """The representations of X by each network."""
        return self.represent(self.images, "clean")

    def represent(self, images: Tensor, condition: str) -> list[ArrayRepresentation]:
        """The representations of the images by each network."""
        found = []
        for (name, network), layer in zip(self.networks.items(), self.layers, strict=True):
            values = read_all(network, images, layer, batch_size=self.batch_size)
            found.append(
                ArrayRepresentation.from_array(values, layer=layer, condition=condition, model=name)
            )
        return found

    def cka(self, others: Sequence[ArrayRepresentation] = ()) -> Pairs:
        """CKA of all pairs of the originals' representations and these."""
        return cka_pairs([*self.clean, *others], estimator=self.estimator, groups=self.groups)

    def look(self, images: Tensor, inverted: int = 0) -> tuple[Cells, Cells]:
        """CKA of each network's representations of X and of `images`, (M,); and, among those of
        `images`, of each network's and the inverted network's.
        """
        count = len(self.networks)
        pairs = self.cka(self.represent(images, "other"))
        clean, other = np.arange(count), np.arange(count) + count
        return _cells(pairs, clean, other), _cells(pairs, other, np.full(count, other[inverted]))

    def predict(self, images: Tensor) -> dict[str, NDArray[np.int64]]:
        """The class that each classifier gives each image, (samples,).

        Raises:
            UserError: an output that is not (samples, classes).
        """
        found = {}
        for name in self.classifiers:
            with torch.no_grad(), frozen(self.networks[name]) as net:
                outputs = [net(part) for part in images.split(self.batch_size)]
            for output in outputs:
                if not isinstance(output, Tensor) or output.dim() != 2:
                    came = (
                        tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                    )
                    raise UserError(
                        f"{name} expects to return logits (samples, classes) where predictions "
                        f"are counted; got {came}; leave it out of classifiers"
                    )
            found[name] = torch.cat(outputs).argmax(1).cpu().numpy()
        return found

    def invert(
        self,
        position: int,
        begin: Tensor,
        *,
        steps: int,
        step_size: float | None,
        seed: int,
        ids: Tensor | None,
        repetition: int,
        precision: torch.dtype | None,
        what: str,
        progress: Progress,
    ) -> Column:
        """Invert one network and let all look at the result and at its control.

        Args:
            position: which network.
            begin: starts, (samples, c, h, w).
            steps, step_size, seed, ids: see `repsim.inversion.invert`.
            repetition: of the noise control's draws.
            precision: of the steps; see `repsim.inversion.shared.shared_invariances`.
            what: how the progress is called.
            progress: told of every step.
        """
        name, layer = list(self.networks)[position], self.layers[position]
        record: dict[str, Tensor] = {}
        total = steps * -(-len(self.images) // self.batch_size)
        device = self.images.device.type
        with (
            progress.task(what, total, unit="step") as task,
            torch.autocast(device, dtype=precision, enabled=precision is not None),
        ):
            result = invert(
                self.networks[name], self.images, layer, start=begin, steps=steps,
                step_size=step_size, batch_size=self.batch_size, record=record,
                advance=task.advance,
            )  # fmt: skip
        noisy, _ = noise_at_distance(
            self.networks[name], self.images, record["distance"], layer,
            batch_size=self.batch_size, seed=seed, ids=ids, repetition=repetition,
        )  # fmt: skip
        stir, inverted_cka = self.look(result, position)
        return Column(
            stir=stir,
            inverted_cka=inverted_cka,
            noise=self.look(noisy)[0],
            distance=_numbers(record["distance"]),
            start_distance=_numbers(record["start_distance"]),
            pixels=_numbers((result - self.images).flatten(1).pow(2).mean(1).sqrt()),
            predictions=self.predict(result),
            images=result.cpu(),
        )


def _cells(pairs: Pairs, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Cells:
    replicates = None if pairs.replicates is None else pairs.replicates[:, rows, columns]
    return Cells(pairs.value[rows, columns], replicates)


def _numbers(values: Tensor) -> Array:
    return values.double().cpu().numpy()
