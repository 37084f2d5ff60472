"""Where findings are made: quantities become numbers with intervals, seeds, paper and command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from repsim.findings.cells import SIMILARITY, WITHIN, Similarities
from repsim.findings.evidence import UNTRAINED, Evidence, Network
from repsim.findings.finding import NOT_RUN, Finding
from repsim.findings.number import IMAGES, Number
from repsim.findings.paper import Paper, agrees
from repsim.findings.quantity import Quantity, Source, combine, known, less, mean
from repsim.findings.verdict import by_part, outcome, verdict


@dataclass(frozen=True)
class Seeds:
    """The same quantity of several seeds, or pairs of seeds, of one recipe.

    Attributes:
        units: one or more.
    """

    units: tuple[Quantity, ...]

    @classmethod
    def of(cls, units: Sequence[Quantity | None]) -> Seeds | None:
        """Those that are there; None for none."""
        found = known(units)
        return cls(tuple(found)) if found else None

    @property
    def mean(self) -> Quantity:
        """Over seeds."""
        return mean(self.units)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Smallest and largest; None for one."""
        values = [one.value for one in self.units]
        return (min(values), max(values)) if len(values) > 1 else None

    @property
    def spread(self) -> float | None:
        """The range over seeds; None for one."""
        return None if self.ends is None else self.ends[1] - self.ends[0]


Parts = Sequence[tuple[float, Seeds]]


@dataclass(frozen=True)
class Sides:
    """How a quantity of one network is made: a part of CKA(x, y).

    Attributes:
        part: see `repsim.findings.cells`.
        x, y: conditions.
    """

    part: str
    x: str
    y: str


class Desk:
    """Makes the numbers of one study.

    Args:
        evidence: all that is known.
        margin: differences within ± this mean nothing.
        paper_layers: the paper's numbers to put beside.
    """

    def __init__(self, evidence: Evidence, margin: float, paper_layers: str) -> None:
        self.evidence, self.margin = evidence, margin
        self.paper = Paper(evidence, paper_layers)
        self.similarity = Similarities(evidence.similarity, SIMILARITY)
        within = evidence.within
        self.within = None if within is None else Similarities(within, WITHIN)

    def each(
        self, networks: Sequence[Network], sides: Sides, source: Source | None = None
    ) -> list[Quantity | None]:
        """A part of CKA(x, y) of each network with itself."""
        source = source or self.similarity
        return [
            source.find(sides.part, f"{one.name}:{sides.x}", f"{one.name}:{sides.y}")
            for one in networks
        ]

    def seeds(
        self, networks: Sequence[Network], sides: Sides, source: Source | None = None
    ) -> Seeds | None:
        """The same of those that have it."""
        return Seeds.of(self.each(networks, sides, source))

    def paired(
        self, networks: Sequence[Network], a: Sides, b: Sides, source: Source | None = None
    ) -> Seeds | None:
        """a less b of each network that has both."""
        both = zip(
            self.each(networks, a, source), self.each(networks, b, source), strict=True
        )  # fmt: skip
        return Seeds.of([less(one, other) for one, other in both])

    def between(
        self,
        these: Sequence[Network],
        those: Sequence[Network],
        part: str,
        condition: str,
        source: Source | None = None,
    ) -> list[Quantity | None]:
        """A part of every network of one group against every one of another.

        Within one group every pair of different seeds once.
        """
        source = source or self.similarity
        return [
            source.find(part, f"{a.name}:{condition}", f"{b.name}:{condition}")
            for i, a in enumerate(these) for j, b in enumerate(those)
            if a.name != b.name and (list(these) != list(those) or i < j)
        ]  # fmt: skip

    def pairs(
        self,
        these: Sequence[Network],
        those: Sequence[Network],
        part: str,
        condition: str,
        source: Source | None = None,
    ) -> Seeds | None:
        """The same of those that have it."""
        return Seeds.of(self.between(these, those, part, condition, source))

    def number(
        self,
        quantity: Quantity | Seeds | None,
        key: str,
        label: str,
        layers: str,
        *,
        scheme: str = "",
        scenario: str = "",
        difference: bool = False,
    ) -> list[Number]:
        """One number that decides nothing; none where it is not defined.

        Args:
            quantity: it, or that of each seed.
            key, label, layers, scheme, scenario: see `Number`.
            difference: whether its sign is a direction.
        """
        ends = quantity.ends if isinstance(quantity, Seeds) else None
        spread = quantity.spread if isinstance(quantity, Seeds) else None
        if isinstance(quantity, Seeds):
            quantity = quantity.mean
        if quantity is None:
            return []
        found = quantity.interval() or (None, None)
        sides = [side for _, term in quantity.terms if term.part for side in term.sides]
        paper = self.paper.value(quantity)
        return [Number(
            key=key, label=label, value=quantity.value, lower=found[0], upper=found[1],
            over=IMAGES, interval=quantity.method, samples=quantity.samples, layers=layers,
            scheme=scheme, scenario=scenario,
            networks=tuple(dict.fromkeys(network for network, _ in sides)),
            conditions=tuple(dict.fromkeys(condition for _, condition in sides)),
            paper=paper, paper_layers=None if paper is None else self.paper.layers,
            agrees=agrees(quantity.value, paper, difference=difference),
            seed_lower=ends and ends[0], seed_upper=ends and ends[1], spread=spread,
            signed=difference,
            command=f'python -m repsim.findings {quantity.file} "{quantity.text()}"',
        )]  # fmt: skip

    def difference(
        self,
        parts: Parts,
        key: str,
        label: str,
        layers: str,
        *,
        scheme: str = "",
        scenario: str = "",
        stand_in: tuple[float, str] | None = None,
        paper: float | None = None,
    ) -> Number:
        """Σ factor · mean over seeds, positive as claimed, with what it says.

        Args:
            parts: factors and the seeds of each side. The spread is the largest range over the
                seeds of a side.
            key, label, layers, scheme, scenario: see `Number`.
            stand_in: a spread and where it comes from, where no side has two seeds.
            paper: the paper's number, where it is not the same combination.
        """
        made = self.number(
            combine([(factor, seeds.mean) for factor, seeds in parts]), key, label, layers,
            scheme=scheme, scenario=scenario, difference=True,
        )[0]  # fmt: skip
        spreads = [seeds.spread for _, seeds in parts if seeds.spread is not None]
        spread, source = (max(spreads), None) if spreads else stand_in or (None, None)
        if paper is not None:
            made = replace(
                made, paper=paper, paper_layers=self.paper.layers,
                agrees=agrees(made.value, paper, difference=True),
            )  # fmt: skip
        return replace(
            made, spread=spread, spread_from=source,
            outcome=outcome(made.value, made.lower, made.upper, spread, self.margin),
        )  # fmt: skip

    def finding(
        self,
        key: str,
        claim: str,
        numbers: list[Number],
        controls: list[Number],
        differences: list[Number],
        notes: list[str],
        judged: tuple[str, str] | None = None,
    ) -> Finding:
        """With the verdict that the differences give.

        Args:
            key, claim, numbers, controls, differences, notes: see `Finding`.
            judged: verdict and reason, where the differences alone do not give them.
        """
        said, reason = judged or verdict(differences)
        notes = [*by_part(differences), *notes]
        return Finding(
            key, claim, said, f"{reason}.", self.margin, numbers, controls, differences, notes
        )

    def left_out(self, *scenarios: str) -> list[str]:
        """A sentence for each network of another architecture, and for each scheme that lacks one.

        Args:
            scenarios: that a scheme needs networks of.
        """
        usual = self.evidence.usual()
        schemes = dict.fromkeys(one.scheme for one in usual if one.scenario != UNTRAINED)
        other = [
            f"{one.name} is left out: its architecture, {one.arch or 'not known'}, is not that of "
            "most networks."
            for one in self.evidence.networks if one not in usual
        ]  # fmt: skip
        return other + [
            f"{scheme} is left out: it has no {' and no '.join(lacks)} network."
            for scheme in schemes
            if (lacks := [name for name in scenarios if not self.evidence.group(scheme, name)])
        ]

    def missing(self, key: str, claim: str, what: str) -> Finding:
        """A claim whose networks are not there.

        Args:
            key, claim: of the finding.
            what: is missing.
        """
        return Finding(key, claim, NOT_RUN, f"Needs {what}.", self.margin)
