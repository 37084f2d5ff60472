"""Linear combinations of means over cells, which carry their replicates and how to make them again.

Whatever the study says of similarities is such a combination, so the difference of two numbers is
taken replicate by replicate: what both share, the images, cancels. Written out, `0.5
[last third](sl-at-0:clean, sl-at-0:pgd) - ...` is what `python -m repsim.findings` reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from repsim.errors import UserError
from repsim.findings.number import BINOMIAL, JACKKNIFE
from repsim.similarity import interval

TERM = re.compile(
    r"\s*(?P<sign>[+-]?)\s*(?P<factor>\d+\.?\d*(?:e-?\d+)?)?\s*"
    r"(?:\[(?P<part>[^\]]+)\]\((?P<x>[^,()]+), (?P<y>[^,()]+)\))?",
)


@dataclass(frozen=True)
class Term:
    """The mean over some cells of one side against another.

    Attributes:
        part: which cells; see `repsim.findings.cells.weights`. "" for the constant 1.
        x, y: NETWORK:CONDITION that make the rows and the columns.
    """

    part: str
    x: str = ""
    y: str = ""

    def __str__(self) -> str:
        return f"[{self.part}]({self.x}, {self.y})"

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(network, condition) of both."""
        return side(self.x), side(self.y)


@dataclass(frozen=True)
class Quantity:
    """A number as a combination of terms.

    Attributes:
        terms: (factor, term) of each, terms of one kind once.
        value: Σ factor · term.
        replicates: (G,) the same without each jackknife group; None where there are none.
        sizes: (G,) units in each group.
        ends: 95% [lower, upper] where there are no replicates (exact binomial); of a sum as wide as
            all together, which holds however they depend on one another. None for no interval.
        file: which file of a study has it.
        samples: images that it is of, of a combination the smallest number; None for similarities.
    """

    terms: tuple[tuple[float, Term], ...]
    value: float
    replicates: NDArray[np.float64] | None
    sizes: NDArray[np.int64]
    ends: tuple[float, float] | None
    file: str
    samples: int | None = None

    def __add__(self, other: Quantity) -> Quantity:
        return combine([(1.0, self), (1.0, other)])

    def __sub__(self, other: Quantity) -> Quantity:
        return combine([(1.0, self), (-1.0, other)])

    def __mul__(self, factor: float) -> Quantity:
        return combine([(factor, self)])

    __rmul__ = __mul__

    @property
    def fixed(self) -> bool:
        """Whether it is a constant, which no sample changes."""
        return bool(self.terms) and not any(term.part for _, term in self.terms)

    def interval(self) -> tuple[float, float] | None:
        """95% [lower, upper]; None where there is none."""
        if self.replicates is not None:
            lower, upper = interval(self.value, self.replicates, self.sizes)
            return None if np.isnan(lower + upper) else (float(lower), float(upper))
        return self.ends

    @property
    def method(self) -> str:
        """How the interval is made; "" for none."""
        if self.interval() is None:
            return ""
        return BINOMIAL if self.replicates is None else JACKKNIFE

    def text(self) -> str:
        """What `parse` reads."""
        words = []
        for factor, term in self.terms:
            size = f"{abs(factor):.12g}"
            body = size if not term.part else str(term) if size == "1" else f"{size} {term}"
            words.append(f"{'- ' if factor < 0 else '+ '}{body}")
        return " ".join(words).removeprefix("+ ")


class Source(Protocol):
    """Where terms come from."""

    file: str

    def find(self, part: str, x: str, y: str) -> Quantity | None:
        """One term; None where it is not there or not defined."""


def combine(parts: Sequence[tuple[float, Quantity]]) -> Quantity:
    """Σ factor · quantity, all from one file."""
    terms: dict[Term, float] = {}
    for factor, one in parts:
        for inner, term in one.terms:
            terms[term] = terms.get(term, 0.0) + factor * inner
    kept = [one for one in parts if not one[1].fixed]
    replicates, ends = None, None
    each = [factor * one.replicates for factor, one in kept if one.replicates is not None]
    if kept and len(each) == len(kept):
        replicates = np.sum(each, axis=0)
        replicates += float(sum(factor * one.value for factor, one in parts if one.fixed))
    value = float(sum(factor * one.value for factor, one in parts))
    if not each and kept and all(one.ends is not None for _, one in kept):
        ends = _ends(parts)
    first = kept[0][1] if kept else parts[0][1]
    samples = [one.samples for _, one in parts if one.samples is not None]
    return Quantity(
        tuple((factor, term) for term, factor in terms.items() if abs(factor) > 1e-12),
        value, replicates, first.sizes, ends, first.file, min(samples, default=None),
    )  # fmt: skip


def _ends(parts: Sequence[tuple[float, Quantity]]) -> tuple[float, float]:
    """Of a sum: a negative factor turns an interval round."""
    lower = upper = 0.0
    for factor, one in parts:
        low, high = one.ends or (one.value, one.value)  # a constant is known
        lower += factor * (low if factor > 0 else high)
        upper += factor * (high if factor > 0 else low)
    return lower, upper


def mean(quantities: Sequence[Quantity]) -> Quantity:
    """Of one or more."""
    return combine([(1 / len(quantities), one) for one in quantities])


def less(a: Quantity | None, b: Quantity | None) -> Quantity | None:
    """a - b; None where one is not there or not defined.

    Differences of one network are taken so, before those that lack are left out of a mean.
    """
    if a is None or b is None or np.isnan(a.value - b.value):
        return None
    return a - b


def constant(value: float) -> Quantity:
    """A number that is known."""
    none = np.zeros(0, dtype=np.int64)
    return Quantity(((1.0, Term("")),), 1.0, None, none, None, "") * value


def side(text: str) -> tuple[str, str]:
    """(network, condition) of NETWORK:CONDITION; a network's name may have colons."""
    network, _, condition = text.rpartition(":")
    return network, condition


def parse(text: str, source: Source) -> Quantity:
    """The number that `Quantity.text` wrote.

    Args:
        text: such as `[final](a:clean, b:clean) - 0.5 [last third](a:clean, a:pgd)`.
        source: where the terms are.

    Raises:
        UserError: something else, or a term that the source does not have.
    """
    parts: list[tuple[float, Quantity]] = []
    place = 0
    while place < len(text.rstrip()):
        found = TERM.match(text, place)
        if not found or not (found["factor"] or found["part"]):
            raise UserError(
                "a number expects terms such as 0.5 [last third](a:clean, a:pgd), joined by + or "
                f"-; got {text[place:].strip()!r}"
            )
        factor = float(found["factor"] or 1) * (-1 if found["sign"] == "-" else 1)
        one = source.find(found["part"], found["x"], found["y"]) if found["part"] else constant(1)
        if one is None:
            raise UserError(
                f"{source.file}: expected [{found['part']}]({found['x']}, {found['y']}); it is "
                "not there or not defined; repsim info lists networks and conditions"
            )
        parts.append((factor, one))
        place = found.end()
    if not parts:
        raise UserError("a number expects at least one term; got none")
    return combine(parts)


def known(quantities: Iterable[Quantity | None]) -> list[Quantity]:
    """Those that are there and defined."""
    return [one for one in quantities if one is not None and not np.isnan(one.value)]
