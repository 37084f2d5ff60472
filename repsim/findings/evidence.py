"""What findings are made from: networks, their similarities, accuracies, probes' agreement."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from repsim.compare import AllPairs
from repsim.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

ST, AT, PARTIAL, FULL, UNTRAINED = "st", "at", "partial-at", "full-at", "untrained"
SCENARIOS = (ST, AT, PARTIAL, FULL, UNTRAINED)


@dataclass(frozen=True)
class Network:
    """A network of the study.

    Attributes:
        name: as in the similarities' keys.
        scheme: sl, scl, cl, rocl, ... as in DESIGN.md.
        scenario: one of `SCENARIOS`.
        seed: of its training.
        predictions: a row an image, columns NETWORK:CONDITION with the predicted class (below 0:
            none), so that agreements of predictions are compared image by image.
        probe_predictions: the same of probes, columns LAYER|NETWORK:CONDITION, of as many layers as
            there are.
        eps: size of the training attack, linf, in pixel units; None for st, or where not known.
    """

    name: str
    scheme: str
    scenario: str
    seed: int
    eps: float | None = None

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise UserError(
                f"network {self.name}: scenario expects one of {', '.join(SCENARIOS)}; "
                f"got {self.scenario!r}"
            )


@dataclass
class Evidence:
    """All that is known of the networks of a study.

    Attributes:
        networks: of different names.
        similarity: every layer × condition × network against every other; keys (network name,
            condition, layer), the layers of a network in execution order.
        own: the condition of images attacked on the network itself.
        shared: the condition of attacked images that are the same for all networks.
        clean, noise: the conditions of clean images and of the control of the attack's size.
        within: the same similarity within classes.
        accuracy: columns network, condition, accuracy, lower, upper, samples.
        robust: the condition in `accuracy` of robust accuracy; `own` by default.
        probes: probes' tables of all networks, one below the other.
        agreement: columns a, b (networks), what ("prediction" or "probe"), layer ("" for
            predictions), condition, agreement, lower, upper, kappa, samples.
        predictions: a row an image, columns NETWORK:CONDITION with the predicted class (below 0:
            none), so that agreements of predictions are compared image by image.
        probe_predictions: the same of probes, columns LAYER|NETWORK:CONDITION, of as many layers as
            there are.
        eps: size of the training attack that "at" means where networks have several; by default
            the one that most networks have.

    Raises:
        UserError: two networks of one name, or a network that `similarity` has no clean images of.
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
    probes: pd.DataFrame | None = None
    agreement: pd.DataFrame | None = None
    predictions: pd.DataFrame | None = None
    probe_predictions: pd.DataFrame | None = None
    eps: float | None = field(default=None)

    def __post_init__(self) -> None:
        names = [one.name for one in self.networks]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(f"findings expect networks of different names; twice: {twice[0]}")
        known = {(model, condition) for model, condition, _ in self.similarity.keys}
        absent = [name for name in names if (name, self.clean) not in known]
        if absent:
            raise UserError(
                f"findings expect the similarity of every network's {self.clean} images; not "
                f"there: {', '.join(absent)}; compare them, or leave them out of networks"
            )
        if self.robust is None:
            self.robust = self.own
        if self.eps is None:
            self.eps = self._usual_eps()

    def group(self, scheme: str, scenario: str, eps: float | None = None) -> list[Network]:
        """The seeds of a recipe, by seed.

        Args:
            scheme: of them.
            scenario: of them; adversarially trained ones with the usual size of the attack.
            eps: another size.
        """
        found = [one for one in self.networks if (one.scheme, one.scenario) == (scheme, scenario)]
        if scenario not in (ST, UNTRAINED):
            wanted = self.eps if eps is None else eps
            found = [
                one for one in found
                if wanted is None or same_eps(one.eps, wanted) or (one.eps is None and eps is None)
            ]  # fmt: skip
        return sorted(found, key=lambda one: (one.seed, one.name))

    def schemes(self, *scenarios: str) -> list[str]:
        """Schemes that have networks of all these scenarios, in the order of `networks`."""
        everything = dict.fromkeys(
            one.scheme for one in self.networks if one.scenario != UNTRAINED
        )  # fmt: skip
        return [
            scheme for scheme in everything if all(self.group(scheme, one) for one in scenarios)
        ]

    def untrained(self) -> list[Network]:
        """Networks that were never trained."""
        return [one for one in self.networks if one.scenario == UNTRAINED]

    def adversarial(self) -> list[Network]:
        """Adversarially trained networks of every scenario and size."""
        return [one for one in self.networks if one.scenario in (AT, PARTIAL, FULL)]

    def budgets(self, scheme: str) -> list[float]:
        """Sizes of the attack with which the scheme's at networks were trained, ascending."""
        found: list[float] = []
        for one in self.networks:
            ours = (one.scheme, one.scenario) == (scheme, AT) and one.eps is not None
            if ours and not any(same_eps(one.eps, eps) for eps in found):
                found.append(one.eps or 0.0)
        return sorted(found)

    def _usual_eps(self) -> float | None:
        """The size that most at networks have; of several such the middle one."""
        sizes = [one.eps for one in self.networks if one.scenario == AT and one.eps is not None]
        if not sizes:
            return None
        counts = Counter(round(eps, 6) for eps in sizes)
        most = sorted(eps for eps, count in counts.items() if count == max(counts.values()))
        return most[(len(most) - 1) // 2]


def same_eps(a: float | None, b: float | None) -> bool:
    """Whether two sizes are the same up to how they were written."""
    return a is not None and b is not None and abs(a - b) < 1e-5
