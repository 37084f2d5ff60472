"""Which networks go together: the same recipe, the same scheme, the same question."""

from __future__ import annotations

import itertools

from repsim.findings import Network
from repsim.report.read import Study


def usual_eps(study: Study) -> float | None:
    """The size of the training attack that most adversarially trained networks have."""
    sizes = [
        round(one.eps, 6)
        for one in study.networks
        if one.scenario == "at" and one.eps is not None
    ]  # fmt: skip
    if not sizes:
        return None
    most = max(sizes.count(eps) for eps in sizes)
    found = sorted({eps for eps in sizes if sizes.count(eps) == most})
    return found[(len(found) - 1) // 2]


def usual(study: Study, scenario: str) -> list[Network]:
    """Networks of a scenario, those with another size of the training attack left out."""
    eps = usual_eps(study)
    return [
        one
        for one in study.networks
        if one.scenario == scenario
        and (scenario == "st" or eps is None or one.eps is None or abs(one.eps - eps) < 1e-5)
    ]


def by_scheme(networks: list[Network]) -> dict[str, list[Network]]:
    """Networks by scheme, in their order."""
    found: dict[str, list[Network]] = {}
    for one in networks:
        found.setdefault(one.scheme, []).append(one)
    return found


def across_schemes(networks: list[Network]) -> list[tuple[Network, Network]]:
    """Pairs of different schemes."""
    pairs = itertools.combinations(networks, 2)
    return [(a, b) for a, b in pairs if a.scheme != b.scheme]


def seeds(networks: list[Network]) -> list[tuple[Network, Network]]:
    """Pairs of the same scheme: what chance does to one recipe."""
    pairs = itertools.combinations(networks, 2)
    return [(a, b) for a, b in pairs if a.scheme == b.scheme and a.seed != b.seed]
