"""Shared invariances: does one network see as alike what another one cannot tell apart?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from repsim.errors import UserError
from repsim.inversion.columns import Array, Cells, Column, Panel
from repsim.inversion.features import PENULTIMATE
from repsim.inversion.invert import BATCH_SIZE, STEPS
from repsim.inversion.starts import starting_images
from repsim.progress import Progress, Silent
from repsim.similarity import interval

ESTIMATORS = ("debiased", "biased")


@dataclass(frozen=True)
class Estimate:
    """A number for each pair of networks, with what it is uncertain by.

    Attributes:
        value: (M, M), mean over repetitions.
        lower, upper: (M, M) 95%, delete-one-group jackknife over images of that mean; None where
            there are too few images or groups.
        repetitions: (k, M, M) the value of each repetition: another start, the same images.
    """

    value: Array
    lower: Array | None
    upper: Array | None
    repetitions: Array

    @property
    def spread(self) -> Array | None:
        """(M, M) standard deviation over repetitions; None of one."""
        return self.repetitions.std(0, ddof=1) if len(self.repetitions) > 1 else None


@dataclass(frozen=True)
class SharedInvariances:
    """What `shared_invariances` found; m_i(X) are the representations of images X by network i.

    In every matrix the column is the network from which the images X' were inverted, the row the
    one that looks at them.

    Attributes:
        models: names of the M networks.
        layers: the layer of each.
        estimator: of CKA.
        stir: CKA(m_i(X), m_i(X')), X' inverted from network j: STIR(m_i | m_j).
        inverted_cka: CKA(m_i(X'), m_j(X')), X' inverted from network j; 1 on the diagonal.
        cka: CKA(m_i(X), m_j(X)), which needs no inversion.
        noise: as `stir`, of X with noise that network j notices as much as it tells X' from X.
        start: as `stir`, of the images that the inversions started from; the same in a row.
        distance: (M, k, n) ‖m_j(X') − m_j(X)‖₂ / ‖m_j(X)‖₂ reached on the network inverted.
        start_distance: (M, k, n) the same at the start.
        pixels: (M, k, n) root mean square of X' − X over pixel values.
        clean_predictions: (n,) the class predicted for X, of each network that classifies.
        predictions: (M, k, n) the same for X' of each network inverted.
        begun: (n, c, h, w) starts of the first repetition, on the CPU.
        inverted: (M, n, c, h, w) X' of the first repetition, on the CPU.
        groups: jackknife groups that the intervals are from; 0 without intervals.
        notes: what a reader should know.
    """

    models: list[str]
    layers: list[str]
    estimator: str
    stir: Estimate
    inverted_cka: Estimate
    cka: Estimate
    noise: Estimate
    start: Estimate
    distance: Array
    start_distance: Array
    pixels: Array
    clean_predictions: dict[str, NDArray[np.int64]]
    predictions: dict[str, NDArray[np.int64]]
    begun: Tensor
    inverted: Tensor
    groups: int
    notes: list[str]

    @property
    def kept(self) -> Array:
        """(M, M) the fraction of X' of network j of which network i says what it says of X.

        nan in the row of a network that does not classify.
        """
        count = len(self.models)
        found = np.full((count, count), np.nan)
        for i, name in enumerate(self.models):
            if name in self.predictions:
                same = self.predictions[name] == self.clean_predictions[name]
                found[i] = same.mean((1, 2))
        return found


def shared_invariances(
    networks: Mapping[str, nn.Module],
    images: Tensor,
    *,
    layers: str | Sequence[str] = PENULTIMATE,
    start: str = "noise",
    labels: Tensor | None = None,
    steps: int = STEPS,
    step_size: float | None = None,
    repetitions: int = 1,
    estimator: str = "debiased",
    groups: int = 10,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    ids: Tensor | None = None,
    classifiers: Collection[str] = (),
    precision: torch.dtype | None = None,
    progress: Progress | None = None,
) -> SharedInvariances:
    """STIR, inverted-image CKA and plain CKA of every ordered pair of networks, with controls.

    STIR(m₂|m₁) = 1/k·Σ CKA(m₂(X), m₂(X')) over k draws of the starts (Nanda et al. 2022, arXiv
    2206.11939), X' images that m₁ maps to its representations of X: 1 where m₂ has every
    invariance of m₁. It is not symmetric. The paper takes linear CKA, biased, of 1,000 images;
    debiased by default here, since of few images the biased one is well above 0 for images that
    have nothing in common.

    Inverted-image CKA = CKA(m₁(X'), m₂(X')) (Jones et al. 2022, UAI, PMLR 180:928): similarity on
    images that hold what m₁ sees of X and nothing else of it. The paper starts from images of
    another class: start="image" with labels.

    Each network is inverted k times, however many others look at the result.

    Args:
        networks: by name; on the images' device.
        images: X, (samples, c, h, w) in [0, 1].
        layers: one for all, or one for each; see `invert`.
        start, labels, steps, step_size, batch_size, seed, ids: see `invert`.
        repetitions: k.
        estimator: of CKA: "debiased" or "biased".
        groups: jackknife groups behind the intervals; 1 for none.
        classifiers: names of networks whose outputs are logits (samples, classes), and of which
            predictions are wanted.
        precision: torch.bfloat16 makes the steps of inversion in autocast; distances and
            similarities are measured in full precision all the same.
        progress: told of every step.

    Raises:
        UserError: no networks, another number of layers than networks, fewer repetitions than 1,
            an unknown estimator, too few images for it, and what `invert` refuses.
    """
    names = list(networks)
    places = [layers] * len(names) if isinstance(layers, str) else list(layers)
    if not names or len(places) != len(names):
        raise UserError(
            f"shared invariances expect networks, and one layer for all or for each; got "
            f"{len(names)} networks and {len(places)} layers"
        )
    if repetitions < 1:
        raise UserError(f"repetitions expects at least 1; got {repetitions}")
    if estimator not in ESTIMATORS:
        raise UserError(f"estimator expects one of {', '.join(ESTIMATORS)}; got {estimator!r}")
    panel = Panel(networks, places, images, estimator, groups, batch_size, classifiers)
    plain = panel.cka()

    columns: list[list[Column]] = []
    starts: list[Cells] = []
    begun = images
    for repetition in range(repetitions):
        begin = starting_images(
            images, start, labels=labels, seed=seed, ids=ids, repetition=repetition
        )
        begun = begun if repetition else begin.cpu()
        starts.append(panel.look(begin)[0])
        which = f", {repetition + 1} of {repetitions}" if repetitions > 1 else ""
        columns.append([
            panel.invert(
                position, begin, steps=steps, step_size=step_size, seed=seed, ids=ids,
                repetition=repetition, precision=precision, what=f"invert {name}{which}",
                progress=progress or Silent(),
            )
            for position, name in enumerate(names)
        ])  # fmt: skip

    def estimate(cells: Callable[[Column], Cells]) -> Estimate:
        return _estimate([[cells(one) for one in row] for row in columns], plain.sizes)

    def numbers(of: Callable[[Column], Any]) -> Any:
        """(k, M) arrays (n,) -> (M, k, n)."""
        return np.array([[of(one) for one in row] for row in columns]).swapaxes(0, 1)

    def predicted(name: str) -> NDArray[np.int64]:
        return numbers(lambda one: one.predictions[name])

    count = len(names)
    whole = [
        Cells(plain.value[:, j], None if plain.replicates is None else plain.replicates[:, :, j])
        for j in range(count)
    ]
    return SharedInvariances(
        models=names,
        layers=places,
        estimator=estimator,
        stir=estimate(lambda one: one.stir),
        inverted_cka=estimate(lambda one: one.inverted_cka),
        cka=_estimate([whole], plain.sizes),
        noise=estimate(lambda one: one.noise),
        start=_estimate([[cells] * count for cells in starts], plain.sizes),
        distance=numbers(lambda one: one.distance),
        start_distance=numbers(lambda one: one.start_distance),
        pixels=numbers(lambda one: one.pixels),
        clean_predictions=panel.predict(images),
        predictions={name: predicted(name) for name in classifiers},
        begun=begun,
        inverted=torch.stack([one.images for one in columns[0]]),
        groups=0 if plain.replicates is None else len(plain.sizes),
        notes=plain.notes,
    )


@dataclass(frozen=True)
class Value:
    """One cell of an `Estimate`: value, 95% interval over images, spread over repetitions."""

    value: float
    interval: tuple[float, float] | None
    spread: float | None


def stir(
    model_1: nn.Module, model_2: nn.Module, images: Tensor, **options: Any
) -> tuple[Value, Value]:
    """STIR(m₂|m₁) and STIR(m₁|m₂); options and errors as in `shared_invariances`."""
    found = shared_invariances({"1": model_1, "2": model_2}, images, **options).stir
    return _cell(found, 1, 0), _cell(found, 0, 1)


def inverted_cka(
    model_1: nn.Module, model_2: nn.Module, images: Tensor, **options: Any
) -> tuple[Value, Value]:
    """CKA(m₁(X'), m₂(X')) on images inverted from m₁, and on images inverted from m₂.

    Options and errors as in `shared_invariances`, which gives this and STIR in one go.
    """
    found = shared_invariances({"1": model_1, "2": model_2}, images, **options).inverted_cka
    return _cell(found, 1, 0), _cell(found, 0, 1)


def _cell(estimate: Estimate, row: int, column: int) -> Value:
    lower, upper, spread = estimate.lower, estimate.upper, estimate.spread
    at = (row, column)
    ends = None if lower is None or upper is None else (float(lower[at]), float(upper[at]))
    return Value(float(estimate.value[at]), ends, None if spread is None else float(spread[at]))


def _estimate(cells: list[list[Cells]], sizes: NDArray[np.int64]) -> Estimate:
    """From k repetitions of M columns of (M,)."""
    repetitions = np.array([[one.value for one in row] for row in cells]).swapaxes(1, 2)
    value = repetitions.mean(0)
    lower = upper = None
    parts = [[one.replicates for one in row] for row in cells]
    if all(part is not None for row in parts for part in row):
        # (k, columns, G, rows) -> the mean over repetitions, (G, rows, columns)
        replicates = np.array(parts).mean(0).transpose(1, 2, 0)
        lower, upper = interval(value, replicates, sizes)
    return Estimate(value, lower, upper, repetitions)
