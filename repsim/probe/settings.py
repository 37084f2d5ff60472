"""How probes are trained, and on what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repsim.errors import UserError
from repsim.keyed import keyed_bits
from repsim.probe.reduce import AUTO

SOLVERS = ("ridge", "logistic", "sgd", "adam", "knn")
DESCENT = ("sgd", "adam")
# Of the literature's solvers the features are all of a layer; the others hold a matrix of them.
_REDUCE = {"sgd": "flatten", "adam": "flatten"}
_STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "ridge": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0),
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1),
    "sgd": (0.0, 1e-4, 1e-3),
    "adam": (0.0, 1e-4, 1e-3),
    "knn": (1, 5, 10, 20, 50),
}
_LR = {"sgd": 2.0, "adam": 2e-2}
_STREAM = 0x70726F6265  # of the draw of the validation part


@dataclass(frozen=True)
class Settings:
    """How probes are trained.

    Attributes:
        solver: one of `SOLVERS`. ridge: least squares on one-hot labels, exact, in one pass.
            logistic: multinomial, by L-BFGS. sgd, adam: cross-entropy by steps on batches, as in
            the literature (30 epochs). knn: vote of the nearest training images.
        strengths: penalties to choose from on the validation part. With means over training images,
            one-hot labels y and z the features, standardised to deviation 1, what is minimised is
            ridge: mean ‖W z + b - y‖² + strength·‖W‖²
                   (scikit-learn's Ridge with alpha = images·strength);
            logistic: mean cross-entropy of W z + b + strength/2·‖W‖²
                   (scikit-learn's LogisticRegression with C = 1/(images·strength));
            sgd, adam: the same as logistic, but of z/√features: length about 1, so that one
                   learning rate fits layers of any width.
            b has no penalty. Of knn: numbers of neighbours.
        reduce: what a probe sees of a layer; see `choose_reduction`.
        most: features that reduce "auto" leaves.
        epochs, lr, batch_size: of sgd and adam; the rate falls to 0 as a cosine.
        validation: fraction of the training images, by class, that chooses the strength. ridge,
            logistic and knn then train on all images with it.
        memory: bytes for features and matrices held; layers beyond it are trained in turn.
        hold: sgd and adam keep the features of all images where they fit the memory, so that all
            epochs cost one forward; False runs the network anew in each.
        seed: of order and validation part.
    """

    solver: str = "ridge"
    strengths: tuple[float, ...] = ()
    reduce: str = ""
    most: int = 1024
    epochs: int = 30
    lr: float = 0.0
    batch_size: int = 256
    validation: float = 0.1
    memory: int = 2 << 30
    hold: bool = True
    seed: int = 0

    def checked(self) -> Settings:
        """The same with the solver's defaults in place of what was not given.

        Raises:
            UserError: names the setting, what was expected and what came.
        """
        if self.solver not in SOLVERS:
            raise UserError(f"--solver expects one of {', '.join(SOLVERS)}; got {self.solver!r}")
        strengths = tuple(self.strengths) or _STRENGTHS[self.solver]
        whole = self.solver == "knn"
        least = 1 if whole else 0
        wrong = [
            s for s in strengths
            if not least <= s < math.inf or (whole and s != int(s))
            or (s == 0 and self.solver not in DESCENT)
        ]  # fmt: skip
        if wrong:
            wanted = "whole numbers of neighbours" if whole else "numbers above 0"
            raise UserError(f"--strengths of {self.solver} expects {wanted}; got {wrong[0]:g}")
        lr = self.lr or _LR.get(self.solver, 0.0)
        if self.solver in DESCENT and not 0 < lr < math.inf:
            raise UserError(f"--lr expects a number above 0; got {lr:g}")
        if self.epochs < 1 or self.batch_size < 2:
            raise UserError(
                f"--epochs expects at least 1 and --batch-size at least 2; got {self.epochs} and "
                f"{self.batch_size}"
            )
        if not 0 < self.validation <= 0.5:
            raise UserError(
                "--validation expects a fraction of the training images above 0 and at most 0.5; "
                f"got {self.validation:g}"
            )
        return replace(
            self,
            strengths=tuple(sorted(set(map(float, strengths)))),
            lr=lr,
            reduce=self.reduce or _REDUCE.get(self.solver, AUTO),
        )

    def to_json(self) -> dict[str, Any]:
        """All settings that decide the result, as plain values."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("memory", "hold")}
        if self.solver not in DESCENT:
            for name in ("epochs", "lr"):
                kept.pop(name)
        return {**kept, "strengths": list(self.strengths)}


def at_the_edge(chosen: Sequence[float], settings: Settings) -> list[str]:
    """What to say where probes chose the last strength of the grid, beyond which may be better.

    Of sgd and adam 0 is no edge, nor is a single neighbour of knn.

    Args:
        chosen: strength of each probe.
        settings: checked ones.
    """
    grid, found = settings.strengths, []
    if len(grid) < 2:
        return []
    lowest = {"knn": 1.0}.get(settings.solver, 0.0)
    for edge, word in ((grid[0], "smallest"), (grid[-1], "largest")):
        count = sum(one == edge for one in chosen)
        if count and edge > lowest:
            found.append(
                f"{count} of {len(chosen)} probes chose the {word} of the strengths, {edge:g}: "
                "others beyond it may be better; try --strengths"
            )
    return found


@dataclass(frozen=True)
class Training:
    """What a probe is trained on.

    Attributes:
        name: as in the table: a condition, or both:CONDITION.
        conditions: those whose images it sees.
    """

    name: str
    conditions: tuple[str, ...]


def trainings(asked: Sequence[str], kinds: Mapping[str, str]) -> list[Training]:
    """What probes are trained on, each once, in order.

    Args:
        asked: "clean", a condition, "both:CONDITION" (clean and attacked images); "adv" and "both"
            mean the one attack there is.
        kinds: "clean", "control" or "attack" by condition of the training split.

    Raises:
        UserError: nothing asked, or a condition that is not there.
    """
    attacks = [name for name, kind in kinds.items() if kind == "attack"]
    found: dict[str, Training] = {}
    for text in asked:
        both = text == "both" or text.startswith("both:")
        name = text.removeprefix("both").removeprefix(":") or "adv" if both else text
        if name == "adv" and len(attacks) == 1:
            name = attacks[0]
        if name not in kinds or (both and name == "clean"):
            known = [*kinds, *(f"both:{other}" for other in kinds if other != "clean")]
            raise UserError(
                f"--train-on expects {', '.join(known)}; got {text!r}"
                + ("; name an attack with --attack" if not attacks else "")
            )
        one = Training(f"both:{name}", ("clean", name)) if both else Training(name, (name,))
        found[one.name] = one
    if not found:
        raise UserError("--train-on expects clean, a condition or both:CONDITION; got none")
    return list(found.values())


def validation_rows(labels: Tensor, keys: Tensor, fraction: float, seed: int) -> Tensor:
    """Which images choose the strength: bool (n,), a fraction of each class.

    Keyed by the images' content, so that they are the same whatever the order. A class of one
    image stays in training.

    Args:
        labels, keys: int64 (n,).
        fraction: of each class; at least one image where it has two.
        seed: of the draw.
    """
    # Halved, so that int64 compares as the unsigned number does.
    draw = (keyed_bits(keys, 1, seed=seed, stream=_STREAM)[:, 0] >> 1) & ((1 << 62) - 1)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label)[:, 0]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen[members[draw[members].argsort()[:count]]] = True
    return chosen
