"""Evidence with known truth, and the study's numbers by loops over cells: nothing of the package's.

`random_evidence` has arbitrary symmetric similarities; `planted` has similarities of a given truth,
with the noise of images (shared by all networks, group by group) and of seeds on top.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import t as student

from repsim.compare import AllPairs
from repsim.findings import Evidence, Network
from repsim.similarity import Pairs

EPS = 8 / 255
CONDITIONS = ("clean", "noise", "pgd", "shared")


def networks_of(
    schemes: Sequence[str] = ("sl", "scl", "cl"),
    seeds: int = 2,
    *,
    full: bool = True,
    budgets: bool = True,
    untrained: bool = True,
) -> list[Network]:
    """The small preset's networks: st and at in two seeds, the others in one."""
    found = [
        Network(f"{scheme}-{scenario}-{seed}", scheme, scenario, seed,
                None if scenario == "st" else EPS)
        for scheme in schemes for scenario in ("st", "at") for seed in range(seeds)
    ]  # fmt: skip
    if full:
        found += [Network(f"{one}-full-at-0", one, "full-at", 0, EPS) for one in schemes]
    if budgets:
        found += [
            Network(f"{schemes[0]}-at-eps{eps}-0", schemes[0], "at", 0, eps / 255)
            for eps in (2, 16)
        ]  # fmt: skip
    return found + ([Network("untrained", "none", "untrained", 0)] if untrained else [])


def pairs_of(
    networks: Sequence[Network], layers: int, value: np.ndarray, replicates: np.ndarray | None,
    sizes: Sequence[int], conditions: Sequence[str] = CONDITIONS,
) -> AllPairs:  # fmt: skip
    keys = [
        (one.name, condition, f"layer{i}")
        for one in networks for condition in conditions for i in range(layers)
    ]  # fmt: skip
    return AllPairs(
        keys, sum(sizes), "cka", Pairs(value, replicates, np.array(sizes, dtype=np.int64))
    )


def random_pairs(
    networks: Sequence[Network], layers: int = 7, groups: int = 5, seed: int = 0
) -> AllPairs:
    generator = np.random.default_rng(seed)
    count = len(networks) * len(CONDITIONS) * layers

    def symmetric(scale: float) -> np.ndarray:
        half = generator.normal(size=(count, count)) * scale
        return (half + half.T) / 2

    value = 0.5 + symmetric(0.2)
    np.fill_diagonal(value, 1.0)
    replicates = np.stack([value + symmetric(0.02) for _ in range(groups)])
    replicates[:, range(count), range(count)] = 1.0
    return pairs_of(networks, layers, value, replicates, [20] * groups)


def accuracy_of(networks: Sequence[Network], right: Callable[[Network], float]) -> pd.DataFrame:
    rows = [
        {"network": one.name, "condition": condition, "accuracy": value, "lower": value - 0.02,
         "upper": value + 0.02, "samples": 1000}
        for one in networks for condition, value in (("clean", 0.9), ("pgd", right(one)))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def said_of(
    networks: Sequence[Network],
    common: Callable[[Network], float],
    right: Callable[[Network], float],
    *,
    images: int = 1000,
    layers: Sequence[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """Predictions of ten classes: right, else a wrong class that all share, else any wrong one.

    Two networks with common parts c and d say the same of c·d + (1 - c·d)/9 of what both get wrong.
    With layers: the same of probes, LAYER|NETWORK:CONDITION.
    """
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 10, size=images)
    columns = {"label": label}
    for condition in CONDITIONS:
        shared = (label + generator.integers(1, 10, size=images)) % 10
        for layer in layers or ("",):
            for one in networks:
                own = (label + generator.integers(1, 10, size=images)) % 10
                wrong = np.where(generator.uniform(size=images) < common(one), shared, own)
                said = np.where(generator.uniform(size=images) < right(one), label, wrong)
                columns[f"{layer}{'|' if layer else ''}{one.name}:{condition}"] = said
    return pd.DataFrame(columns)


def random_evidence(seed: int = 0, layers: int = 7) -> Evidence:
    networks = networks_of()
    generator = np.random.default_rng(seed + 100)
    return Evidence(
        networks, random_pairs(networks, layers, seed=seed), own="pgd", shared="shared",
        within=random_pairs(networks, layers, seed=seed + 1),
        accuracy=accuracy_of(networks, lambda one: float(generator.uniform())),
        predictions=said_of(
            networks, lambda one: 0.5, lambda one: float(generator.uniform(0, 0.5)), images=200,
            seed=seed,
        ),
        probe_predictions=said_of(
            networks, lambda one: 0.5, lambda one: float(generator.uniform(0, 0.5)), images=200,
            layers=("layer0", f"layer{layers - 1}"), seed=seed + 1,
        ),
    )  # fmt: skip


# Numbers by loops.


@dataclass
class Loops:
    """Means over cells of an AllPairs, a cell at a time; each with its replicates."""

    pairs: AllPairs
    places: dict[tuple[str, str, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[tuple[str, str], int] = {}
        for place, (model, condition, _) in enumerate(self.pairs.keys):
            layer = seen.get((model, condition), 0)
            seen[model, condition] = layer + 1
            self.places[model, condition, layer] = place
        self.layers = next(iter(seen.values()))

    def mean(self, x: tuple[str, str], y: tuple[str, str], chosen: Callable[[int, int], bool]):
        """[all images, without group 0, ...]"""
        value, replicates = self.pairs.pairs.value, self.pairs.pairs.replicates
        totals, count = [0.0] * (1 + len(replicates)), 0
        for i in range(self.layers):
            for j in range(self.layers):
                if chosen(i, j):
                    a, b = self.places[(*x, i)], self.places[(*y, j)]
                    totals[0] += value[a, b]
                    for group in range(len(replicates)):
                        totals[group + 1] += replicates[group, a, b]
                    count += 1
        return np.array(totals) / count

    def diagonal(self, name: str, x: str, y: str, first: int = 0, last: int | None = None):
        end = self.layers if last is None else last
        return self.mean((name, x), (name, y), lambda i, j: i == j and first <= i < end)

    def end(self, name: str, x: str, y: str):
        return self.diagonal(name, x, y, self.layers - self.layers // 3)

    def start(self, name: str, x: str, y: str):
        return self.diagonal(name, x, y, 0, self.layers - self.layers // 3)

    def far(self, name: str, x: str):
        return self.mean((name, x), (name, x), lambda i, j: abs(i - j) > self.layers / 2)

    def cross(self, a: str, b: str, condition: str, part: str):
        third = self.layers - self.layers // 3
        chosen = {
            "all pairs": lambda i, j: True,
            "diagonal": lambda i, j: i == j,
            "last third block": lambda i, j: i >= third and j >= third,
            "last third": lambda i, j: i == j >= third,
            "final": lambda i, j: i == j == self.layers - 1,
        }[part]
        return self.mean((a, condition), (b, condition), chosen)

    def blocks(self, name: str, condition: str, plain: bool = False):
        """Block structure, or plain contrast, of the run that is best on all images."""
        n = self.layers
        matrices = [self.pairs.pairs.value, *self.pairs.pairs.replicates]
        parts = []
        for whole in matrices:
            cell = [
                [whole[self.places[name, condition, i], self.places[name, condition, j]]
                 for j in range(n)] for i in range(n)
            ]  # fmt: skip
            rest = [[0.0] * n for _ in range(n)]
            for i in range(n):
                for j in range(n):
                    if i != j:
                        d = abs(i - j)
                        same = [cell[k][k + d] for k in range(n - d)]
                        rest[i][j] = cell[i][j] - (0 if plain else sum(same) / len(same))
            parts.append(rest)

        def contrast(rest: list[list[float]], a: int, b: int) -> float:
            inside = [rest[i][j] for i in range(a, b) for j in range(a, b) if i != j]
            between = [rest[i][j] for i in range(a, b) for j in range(n) if not a <= j < b]
            return sum(inside) / len(inside) - sum(between) / len(between)

        runs = [
            (a, b) for a in range(n) for b in range(a + 1, n + 1)
            if n <= 4 * (b - a) <= 3 * n and b - a >= 2 and n - (b - a) >= 2
        ]  # fmt: skip
        best = max(runs, key=lambda run: contrast(parts[0], *run))
        return np.array([contrast(rest, *best) for rest in parts])


def said_twice(table: pd.DataFrame, x: str, y: str, what: str, groups: int = 50) -> np.ndarray:
    """[all images, without every G-th one, ...] of two columns, an image at a time.

    Args:
        what: "agreement", "both wrong" or "kappa".
    """
    rows = list(zip(table["label"], table[x], table[y], strict=True))
    found = []
    for left_out in (None, *range(groups)):
        kept = [row for i, row in enumerate(rows) if i % groups != left_out]
        if what == "both wrong":
            kept = [(label, a, b) for label, a, b in kept if a != label and b != label]
        same = sum(a == b for _, a, b in kept) / len(kept)
        if what == "kappa":
            first, second = Counter(a for _, a, _ in kept), Counter(b for _, _, b in kept)
            chance = sum(first[c] * second[c] for c in first) / len(kept) ** 2
            same = (same - chance) / (1 - chance)
        found.append(same)
    return np.array(found)


def jackknife(values: np.ndarray) -> tuple[float, float, float]:
    """Value and 95% interval of [all, without group 0, ...], groups of one size."""
    each, groups = values[1:], len(values) - 1
    centre = sum(each) / groups
    error = math.sqrt((groups - 1) / groups * sum((one - centre) ** 2 for one in each))
    half = student.ppf(0.975, groups - 1) * error
    return values[0], values[0] - half, values[0] + half


# Similarities of a given truth.


@dataclass
class Truth:
    """What is true of each network or pair, before noise.

    Attributes:
        clean_attacked: (network, condition, layer) -> CKA of its clean and attacked layer.
        far: network -> long-range similarity.
        block: network -> how much more alike the first half's layers are within.
        cross: (network, network, condition) -> CKA between two networks.
        images: standard deviation of a group's number, from the choice of images.
        seeds: standard deviation of a seed's offset of each kind of number.
    """

    clean_attacked: Callable[[Network, str, int], float]
    far: Callable[[Network], float] = lambda one: 0.5
    block: Callable[[Network], float] = lambda one: 0.0
    cross: Callable[[Network, Network, str], float] = lambda a, b, condition: 0.5
    images: float = 0.02
    seeds: float = 0.0


LAYERS = 6


def planted(
    networks: Sequence[Network], truth: Truth, *, groups: int = 10, seed: int = 0
) -> AllPairs:
    """Estimates of the truth: a group's matrix is truth + seeds + images; all is their mean."""
    generator = np.random.default_rng(seed)
    size = len(CONDITIONS) * LAYERS
    count = len(networks) * size
    middle = np.zeros((count, count))
    i, j = np.indices((LAYERS, LAYERS))
    for p, a in enumerate(networks):
        own, far_seed, align_seed, block_seed = generator.normal(size=4) * truth.seeds
        for q, b in enumerate(networks[p:], p):
            for c, first in enumerate(CONDITIONS):
                for d, second in enumerate(CONDITIONS):
                    if a is not b:
                        same = truth.cross(a, b, first) if first == second else 0.3
                        block = np.full((LAYERS, LAYERS), same + own)
                    elif first == second:
                        block = np.where(abs(i - j) > LAYERS / 2, truth.far(a) + far_seed, 0.7)
                        half = (i < LAYERS // 2) == (j < LAYERS // 2)
                        near = abs(i - j) <= LAYERS / 2
                        block = block + near * half * (truth.block(a) + block_seed)
                        np.fill_diagonal(block, 1.0)
                    else:
                        condition = second if first == "clean" else first
                        block = np.full((LAYERS, LAYERS), 0.4)
                        for layer in range(LAYERS):
                            block[layer, layer] = (
                                truth.clean_attacked(a, condition, layer) + align_seed
                            )
                    rows = slice(p * size + c * LAYERS, p * size + (c + 1) * LAYERS)
                    columns = slice(q * size + d * LAYERS, q * size + (d + 1) * LAYERS)
                    middle[rows, columns] = block
                    middle[columns, rows] = block.T
    # Images: an effect on every cell alike and one of its own, in every group.
    each = np.empty((groups, count, count))
    for group in range(groups):
        own_noise = generator.normal(size=(count, count))
        each[group] = middle + truth.images * (
            0.5 * generator.normal() + (own_noise + own_noise.T) / 2
        )
        np.fill_diagonal(each[group], 1.0)
    whole = each.mean(0)
    replicates = (groups * whole - each) / (groups - 1)
    return pairs_of(networks, LAYERS, whole, replicates, [100] * groups)
