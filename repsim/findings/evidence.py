"""What findings are made from: networks, their similarities, accuracies and predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repsim.compare import AllPairs
from repsim.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

ST, AT, PARTIAL, FULL, UNTRAINED = "st", "at", "partial-at", "full-at", "untrained"
SCENARIOS = (ST, AT, PARTIAL, FULL, UNTRAINED)

Recipe = tuple[str, str, float | None, str]


@dataclass(frozen=True)
class Network:
    """A network of the study.

    Attributes:
        name: as in the similarities' keys.
        scheme: sl, scl, cl, rocl, ... as in DESIGN.md.
        scenario: one of `SCENARIOS`.
        seed: of its training.
        eps: size of the training attack, linf, in pixel units; None for st, or where not known.
        arch: its architecture; networks of two are never seeds of one recipe. "" where not known.
        reach: how far its training attack can go from the clean image, in pixel units
            (`reach_of`); None for st, or where not known.
    """

    name: str
    scheme: str
    scenario: str
    seed: int
    eps: float | None = None
    arch: str = ""
    reach: float | None = None

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise UserError(
                f"network {self.name}: scenario expects one of {', '.join(SCENARIOS)}; "
                f"got {self.scenario!r}"
            )

    @property
    def recipe(self) -> Recipe:
        """What its seeds have in common: scheme, scenario, eps, architecture."""
        eps = None if self.eps is None else round(self.eps, 6)
        return self.scheme, self.scenario, eps, self.arch


@dataclass
class Evidence:
    """All that is known of the networks of a study.

    Attributes:
        networks: of different names; no two of one recipe have the same seed.
        similarity: every layer × condition × network against every other; keys (network name,
            condition, layer), the layers of a network in execution order.
        own: the condition of images attacked on the network itself.
        shared: the condition of attacked images that are the same for all networks.
        clean, noise: the conditions of clean images and of the control of the attack's size.
        within: the same similarity within classes.
        accuracy: columns network, condition, accuracy.
        robust: the condition in `accuracy` of robust accuracy; `own` by default.
        predictions: a row an image of those compared: label (its class) and columns
            NETWORK:CONDITION with the predicted class (below 0: none).
        probe_predictions: the same of probes, columns LAYER|NETWORK:CONDITION, of as many layers as
            there are.
        eps: size of the training attack that "at" means where networks have several; by default
            the one that most networks have.
        arch: the architecture that findings are about where networks have several; by default the
            one that most trained networks have.

    Raises:
        UserError: two networks of one name, or of one recipe and seed; a network that `similarity`
            has no clean images of.
    """

    networks: list[Network]
    similarity: AllPairs
    own: str
    shared: str | None = None
    clean: str = "clean"
    noise: str = "noise"
    within: AllPairs | None = None
    accuracy: pd.DataFrame | None = None
    robust: str | None = None
    predictions: pd.DataFrame | None = None
    probe_predictions: pd.DataFrame | None = None
    eps: float | None = None
    arch: str | None = None

    def __post_init__(self) -> None:
        names = [one.name for one in self.networks]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(f"findings expect networks of different names; twice: {twice[0]}")
        self._refuse_equal_seeds()
        known = {(model, condition) for model, condition, _ in self.similarity.keys}
        absent = [name for name in names if (name, self.clean) not in known]
        if absent:
            raise UserError(
                f"findings expect the similarity of every network's {self.clean} images; not "
                f"there: {', '.join(absent)}; compare them, or leave them out of networks"
            )
        if self.robust is None:
            self.robust = self.own
        if self.arch is None:
            self.arch = self._usual_arch()
        if self.eps is None:
            self.eps = self._usual_eps()

    def group(self, scheme: str, scenario: str, eps: float | None = None) -> list[Network]:
        """The seeds of a recipe, by seed.

        Args:
            scheme: of them.
            scenario: of them; adversarially trained ones with the usual size of the attack.
            eps: another size.
        """
        found = [one for one in self.usual() if (one.scheme, one.scenario) == (scheme, scenario)]
        if scenario not in (ST, UNTRAINED):
            wanted = self.eps if eps is None else eps
            found = [
                one for one in found
                if wanted is None or same_eps(one.eps, wanted) or (one.eps is None and eps is None)
            ]  # fmt: skip
        return sorted(found, key=lambda one: (one.seed, one.name))

    def usual(self) -> list[Network]:
        """Networks of the architecture that findings are about."""
        return [one for one in self.networks if one.arch == self.arch]

    def schemes(self, *scenarios: str) -> list[str]:
        """Schemes that have networks of all these scenarios, in the order of `networks`."""
        everything = dict.fromkeys(one.scheme for one in self.usual() if one.scenario != UNTRAINED)
        return [
            scheme for scheme in everything if all(self.group(scheme, one) for one in scenarios)
        ]

    def untrained(self) -> list[Network]:
        """Networks that were never trained."""
        return [one for one in self.usual() if one.scenario == UNTRAINED]

    def budgets(self, scheme: str) -> list[float]:
        """Sizes of the attack with which the scheme's at networks were trained, ascending."""
        found: list[float] = []
        for one in self.usual():
            ours = (one.scheme, one.scenario) == (scheme, AT) and one.eps is not None
            if ours and not any(same_eps(one.eps, eps) for eps in found):
                found.append(one.eps or 0.0)
        return sorted(found)

    def _refuse_equal_seeds(self) -> None:
        """Two trainings of one recipe and seed are one network, or not of one recipe."""
        seen: dict[tuple[Recipe, int], str] = {}
        for one in self.networks:
            first = seen.setdefault((one.recipe, one.seed), one.name)
            if first != one.name:
                raise UserError(
                    "findings expect networks that differ in scheme, scenario, eps, architecture "
                    f"or seed; {first} and {one.name} do not; give one another seed, or leave it "
                    "out"
                )

    def _usual_arch(self) -> str:
        """The architecture that most trained networks have; of several such the first."""
        trained = [one.arch for one in self.networks if one.scenario != UNTRAINED]
        counts = Counter(trained or [one.arch for one in self.networks])
        return max(counts, key=lambda arch: counts[arch], default="")

    def _usual_eps(self) -> float | None:
        """The size that most at networks have; of several such the middle one."""
        sizes = [one.eps for one in self.usual() if one.scenario == AT and one.eps is not None]
        if not sizes:
            return None
        counts = Counter(round(eps, 6) for eps in sizes)
        most = sorted(eps for eps, count in counts.items() if count == max(counts.values()))
        return most[(len(most) - 1) // 2]


def same_eps(a: float | None, b: float | None) -> bool:
    """Whether two sizes are the same up to how they were written."""
    return a is not None and b is not None and abs(a - b) < 1e-5


def reach_of(settings: Mapping[str, Any]) -> float | None:
    """How far an attack can go from the clean image, in its norm.

    Args:
        settings: of the attack: eps, steps, step_size, start.

    Returns:
        The smaller of eps and steps · step_size; eps where it starts at random; None where the
        settings do not say.
    """
    eps, steps, step = (settings.get(name) for name in ("eps", "steps", "step_size"))
    if eps is None:
        return None
    if settings.get("start") != "clean" or steps is None or step is None:
        return float(eps)
    return min(float(eps), float(steps) * float(step))
