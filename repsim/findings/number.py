"""One number with its interval, its spread over seeds, and the paper's value beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

IMAGES, NETWORKS = "images", "networks"
JACKKNIFE, BINOMIAL, FISHER = "jackknife", "exact binomial", "Fisher"


@dataclass(frozen=True)
class Number:
    """A named number of the study.

    Two things vary and are kept apart: `lower` and `upper` are what other images would give for
    these very networks, `seed_lower` and `seed_upper` what was found with other seeds.

    Attributes:
        key: what it is, such as "alignment_last_third".
        label: the same in plain words.
        value: the number; nan where it is not defined.
        lower, upper: 95% interval; None where there is none.
        over: what the interval is over: "images" or "networks".
        interval: how it was made: "jackknife" (delete-one-group), "exact binomial" (Clopper and
            Pearson; of several networks the means of their ends), "Fisher" (of a correlation); ""
            where there is none.
        samples: images that it is of, where each of them is known (predictions); of several pairs
            of networks the smallest number. None for similarities.
        networks: names of those that it is made of.
        conditions: conditions that it is made of.
        layers: which layers: "all", "last third", "final", "all pairs", ...
        paper: the same number from the paper's own matrices; None where they have none.
        paper_layers: the layers of the paper's number, such as "blocks18".
        agrees: whether direction and size are the paper's, in words; None without one.
        command: what makes this number again from the study's files.
        scheme: the scheme or pair of schemes, "scl & cl"; "" where it is of several.
        scenario: the scenario, or "at - st" of a difference; "" where it is of several.
        seed_lower, seed_upper: the smallest and the largest over seeds (pairs of seeds); None
            for one.
        spread: what differences are held against: the largest range over seeds of the networks
            in it; None where there is one seed only.
        spread_from: where the spread comes from, if not from these networks' own seeds.
        signed: whether it is a difference, whose sign is a direction.
        outcome: of a difference with a direction: one of `repsim.findings.verdict.OUTCOMES`.
    """

    key: str
    label: str
    value: float
    lower: float | None = None
    upper: float | None = None
    over: str = IMAGES
    interval: str = ""
    samples: int | None = None
    networks: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    layers: str = "all"
    paper: float | None = None
    paper_layers: str | None = None
    agrees: str | None = None
    command: str = ""
    scheme: str = ""
    scenario: str = ""
    seed_lower: float | None = None
    seed_upper: float | None = None
    spread: float | None = None
    spread_from: str | None = None
    signed: bool = False
    outcome: str | None = None

    def text(self) -> str:
        """Such as `+0.312 [+0.280, +0.344]`; with a sign for a difference."""
        sign = "+" if self.signed else ""
        if math.isnan(self.value):
            return "not defined"
        if self.lower is None or self.upper is None:
            return f"{self.value:{sign}.3f}"
        return f"{self.value:{sign}.3f} [{self.lower:{sign}.3f}, {self.upper:{sign}.3f}]"

    def to_json(self) -> dict[str, Any]:
        """As plain values; None for nan, which JSON does not have."""
        plain = asdict(self)
        return {
            key: None if isinstance(value, float) and math.isnan(value) else
            list(value) if isinstance(value, tuple) else value
            for key, value in plain.items()
        }  # fmt: skip

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Number:
        """What `to_json` gave."""
        known = {item.name for item in fields(cls)}
        found = {key: value for key, value in plain.items() if key in known}
        for name in ("networks", "conditions"):
            found[name] = tuple(found.get(name, ()))
        found["value"] = math.nan if found.get("value") is None else found["value"]
        return cls(**found)
