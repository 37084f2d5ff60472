"""The paper's own numbers, beside the study's.

`universal.csv` beside this file was computed from the similarity matrices that the authors of
arXiv 2302.02502 published with their code: ResNet-50, CIFAR-100, minibatch linear CKA, one run of
each network. `alignment_*` is CKA(adv, clean) of one network; `long_range` the mean over
|i - j| > L/2 of one network's own matrix; `cross_*` CKA between two networks, each on its own
attacked inputs. Layers: `all147`, every module in execution order; `blocks18`, the stem, 16
residual blocks and the pooled features. One run each: differences under 0.02 mean nothing.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from io import StringIO
from typing import TYPE_CHECKING

from repsim.findings.cells import (
    ALL_PAIRS,
    DIAGONAL,
    END,
    END_BLOCK,
    FINAL,
    LONG_RANGE,
    SIMILARITY,
    START,
)
from repsim.findings.evidence import AT, ST, UNTRAINED, Evidence, Network, same_eps
from repsim.findings.quantity import Quantity, Term

if TYPE_CHECKING:
    import pandas as pd

NOTHING = 0.02  # differences between single runs below it mean nothing
CLOSE = 0.1  # of a similarity that is called close to the paper's
BUDGETS = ((0.25, "at-eps2"), (2.0, "at-eps16"))  # of the usual size
NEAR = 0.1  # a budget counts as one of these up to a tenth
LAYERS = {"blocks18": 18, "all147": 147}
ALIGNMENT = {DIAGONAL: "alignment_mean", END: "alignment_last_third", FINAL: "alignment_at_final"}
CROSS = {
    ALL_PAIRS: "cross_mean",
    DIAGONAL: "cross_diagonal",
    END_BLOCK: "cross_last_third_block",
    END: "cross_last_third_diagonal",
    FINAL: "cross_final",
}


def paper_numbers() -> pd.DataFrame:
    """The table as it is: columns quantity, a, b (scheme/scenario:condition), layers, value."""
    import pandas as pd

    return pd.read_csv(StringIO((files("repsim.findings") / "universal.csv").read_text()))


@cache
def _table() -> dict[tuple[str, str, str, str], float]:
    """Value by quantity, a, b and layers, either way round."""
    found = {}
    for row in paper_numbers().itertuples(index=False):
        for a, b in ((row.a, row.b), (row.b, row.a)):
            found[str(row.quantity), str(a), str(b), str(row.layers)] = float(str(row.value))
    return found


class Paper:
    """What the paper's matrices give for a study's quantities.

    Args:
        evidence: whose networks and conditions are to be found in the paper.
        layers: "blocks18" or "all147".
    """

    def __init__(self, evidence: Evidence, layers: str = "blocks18") -> None:
        self.evidence, self.layers = evidence, layers
        self._networks = {one.name: one for one in evidence.networks}

    def value(self, quantity: Quantity) -> float | None:
        """The same combination of the paper's numbers; None where it lacks one."""
        if quantity.file != SIMILARITY:
            return None
        total = 0.0
        for factor, term in quantity.terms:
            found = self.term(term) if term.part else 1.0
            if found is None:
                return None
            total += factor * found
        return total

    def term(self, term: Term) -> float | None:
        """The paper's number for one term; seeds of a recipe have the same."""
        (a, x), (b, y) = term.sides
        names = [self._name(a, x), self._name(b, y)]
        if names[0] is None or names[1] is None:
            return None
        if a != b:
            quantity = CROSS.get(term.part)
        elif x == y:
            quantity = "long_range" if term.part == LONG_RANGE else None
        elif term.part == START:
            mean, end = (self.term(Term(part, term.x, term.y)) for part in (DIAGONAL, END))
            count = LAYERS[self.layers]
            third = count // 3
            # The mean of all layers is made of the last third and the rest.
            return None if mean is None or end is None else (
                (count * mean - third * end) / (count - third)
            )  # fmt: skip
        else:
            quantity = ALIGNMENT.get(term.part)
        return _table().get((quantity or "", names[0], names[1], self.layers))

    def _name(self, network: str, condition: str) -> str | None:
        """SCHEME/SCENARIO:CONDITION as the table has it."""
        one = self._networks.get(network)
        word = {self.evidence.clean: "clean", self.evidence.own: "adv"}.get(condition)
        scenario = None if one is None else self._scenario(one)
        if one is None or word is None or scenario is None:
            return None
        return f"{one.scheme}/{scenario}:{word}"

    def _scenario(self, one: Network) -> str | None:
        """The paper trained with 2, 8 and 16/255: a quarter and twice the usual size."""
        if one.scenario == UNTRAINED:
            return None
        usual = self.evidence.eps
        if one.scenario == ST or one.eps is None or usual is None:
            return one.scenario
        if same_eps(one.eps, usual):
            return one.scenario
        if one.scenario != AT:
            return None
        near = [name for ratio, name in BUDGETS if abs(one.eps / usual / ratio - 1) < NEAR]
        return near[0] if near else None


def agrees(value: float, paper: float | None, *, difference: bool) -> str | None:
    """Whether direction and size are the paper's, in words; None without a paper's number.

    A difference has the same direction where both have one sign and neither is under 0.02; its
    size is similar between half and twice the paper's. Any other number is close within 0.1.
    """
    if paper is None or value != value:
        return None
    if not difference:
        away = value - paper
        if abs(away) <= CLOSE:
            return "close"
        return f"{'larger' if away > 0 else 'smaller'} by {abs(away):.2f}"
    if abs(paper) < NOTHING or abs(value) < NOTHING:
        if abs(paper) < NOTHING and abs(value) < NOTHING:
            return "no difference in both"
        return "no difference in the paper" if abs(paper) < NOTHING else "no difference here"
    if paper * value < 0:
        return "other direction"
    ratio = value / paper
    size = "similar size" if 0.5 <= ratio <= 2 else "larger" if ratio > 2 else "smaller"
    return f"same direction, {size}"
