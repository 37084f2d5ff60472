"""How much memory probes need, and which layers fit it together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repsim.errors import UserError
from repsim.probe.source import Source


@dataclass(frozen=True)
class Sizes:
    """Bytes that one layer needs while its probes are trained, by the solver."""

    source: Source
    conditions: int
    held_out: int

    def ridge(self, name: str) -> int:
        """Moments or rows, and the validation rows."""
        used, n = self.source.reductions[name].used, len(self.source.labels)
        kept = 8 * used * min(used, n) if n > used else 12 * used * n
        # Of a condition, of a sum of two, of the matrix that is factorised and the factor.
        return self.conditions * kept + 4 * kept + 4 * used * self.held_out * self.conditions

    def held(self, name: str) -> int:
        """All features, and of those of one condition a standardised copy and a temporary."""
        rows = len(self.source.labels) * self.source.reductions[name].used
        return 4 * rows * (self.conditions + 2)

    def descent(self, name: str) -> int:
        """All features."""
        return 4 * len(self.source.labels) * self.source.reductions[name].used * self.conditions


def grouped(names: Sequence[str], size: Callable[[str], int], memory: int) -> list[list[str]]:
    """The layers in groups that fit the memory, in order.

    Raises:
        UserError: a layer that does not fit alone.
    """
    groups: list[list[str]] = []
    filled = 0
    for name in names:
        needed = size(name)
        if needed > memory:
            raise UserError(
                f"layer {name} needs {needed / 2**20:.0f} MiB for its probe; --memory allows "
                f"{memory / 2**20:.0f}; raise it, or leave fewer features: --reduce auto, "
                "--features N"
            )
        if not groups or filled + needed > memory:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += needed
    return groups
