"""Signs that an accuracy under attack comes from a broken attack, not from robustness.

Athalye, Carlini and Wagner 2018 (arXiv 1802.00420, section 3.1) and Carlini et al. 2019
(arXiv 1902.06705): five things that hold for every network whose gradients are of use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repsim.attacks import fgsm, frozen, pgd, square
from repsim.attacks.objective import Classify, value_and_gradient
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, batches
from repsim.evaluate import accuracy_interval, draws_at_random
from repsim.losses import cross_entropy
from repsim.progress import Progress, Silent
from repsim.runtime import Runtime

QUERIES = 300  # of the black-box attack: enough to see what a gradient should have seen
UNBOUNDED_STEPS = 50


@dataclass(frozen=True)
class Flag:
    """One sign.

    Attributes:
        name: single_step, black_box, unbounded, zero_gradient or restart.
        raised: whether it speaks for masked gradients.
        figure: the number behind it, a fraction of the images looked at.
        text: the sentence with its numbers.
    """

    name: str
    raised: bool
    figure: float
    text: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"raised": self.raised, "figure": self.figure, "text": self.text}


def masking_flags(
    loaded: LoadedModel,
    data: ImageData,
    *,
    eps: float,
    norm: str = "linf",
    samples: int = 128,
    batch_size: int = 128,
    runtime: Runtime | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Flag]:
    """Five checks on the first `samples` images that are classified correctly.

    - single_step: FGSM fools more images than PGD-20, which contains it.
    - black_box: Square with 300 queries fools images that PGD-20 does not.
    - unbounded: PGD-50 with linf eps 1, where any image can become any other, leaves some right.
    - zero_gradient: images whose gradient is exactly 0.
    - restart: another random start of PGD-20 changes the accuracy by more than its interval.

    Args:
        loaded: the network, with a linear head.
        data: images of which those that are right clean are looked at.
        eps, norm: the size of FGSM, PGD-20 and Square.
        samples: images at most.
        batch_size: images at once.
        runtime: device, precision, layout.
        seed: of the draws.
        progress: told of the work.

    Returns:
        A flag each, raised or not; none where no image is right, or where the network draws at
        random: there a single success may be luck, and the comparisons say nothing.
    """
    runtime, progress = runtime or Runtime.of(), progress or Silent()
    model = runtime.place(loaded.model).eval()
    if draws_at_random(model, data, runtime):
        return []
    rest = _right(model, data, samples, batch_size, runtime)
    if len(rest) == 0:
        return []
    size: dict[str, Any] = {"eps": eps, "norm": norm}
    checks: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "fgsm": lambda x, y, k: fgsm(model, x, y, **size),
        "pgd": lambda x, y, k: pgd(model, x, y, **size, mode="evaluate", seed=seed, ids=k),
        "again": lambda x, y, k: pgd(model, x, y, **size, mode="evaluate", seed=seed + 1, ids=k),
        "unbounded": lambda x, y, k: pgd(
            model, x, y, eps=1.0, steps=UNBOUNDED_STEPS, mode="evaluate", seed=seed, ids=k
        ),
        "square": lambda x, y, k: square(
            model, x, y, **size, queries=QUERIES, mode="evaluate", seed=seed, ids=k
        ),
    }
    fooled: dict[str, list[Tensor]] = {name: [] for name in checks}
    zero: list[Tensor] = []
    with progress.task("gradient masking", len(rest), unit="img") as task:
        for images, labels, keys in batches(rest, batch_size, runtime.device):
            x = runtime.images(images)
            with runtime.autocast():
                zero.append(_no_gradient(model, x, labels))
                for name, attack in checks.items():
                    fooled[name].append(_wrong(model, attack(x, labels, keys), labels))
            task.advance(len(labels))
    return _judge({k: torch.cat(v) for k, v in fooled.items()}, torch.cat(zero))


def _right(
    model: nn.Module, data: ImageData, samples: int, batch_size: int, runtime: Runtime
) -> ImageData:
    rows: list[Tensor] = []
    start = 0
    for images, labels, _ in batches(data, batch_size, runtime.device):
        with runtime.autocast():
            right = ~_wrong(model, runtime.images(images), labels)
        rows.append(torch.nonzero(right.cpu())[:, 0] + start)
        start += len(labels)
        if sum(len(r) for r in rows) >= samples:
            break
    return data.take(torch.cat(rows)[:samples])


@torch.no_grad()
def _wrong(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return model(x).argmax(1) != labels


def _no_gradient(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    rows = torch.arange(len(x), device=x.device)
    with frozen(model):
        _, gradient, _ = value_and_gradient(Classify(model, labels, cross_entropy), x, rows)
    return gradient.flatten(1).abs().amax(1) == 0


def _judge(fooled: dict[str, Tensor], zero: Tensor) -> list[Flag]:
    """The flags from what each check fooled, (images,) bool."""
    images = len(zero)
    robust = {name: 1 - float(f.float().mean()) for name, f in fooled.items()}
    single = robust["pgd"] - robust["fgsm"]
    black = float((fooled["square"] & ~fooled["pgd"]).float().mean())
    none = float(zero.float().mean())
    low, high = accuracy_interval(round(robust["pgd"] * images), images)
    changed = robust["again"] - robust["pgd"]
    return [
        Flag(
            "single_step", single > 0, single,
            f"FGSM leaves {robust['fgsm']:.1%} right, PGD-20 {robust['pgd']:.1%}",
        ),
        Flag(
            # A random search does find the odd image that 20 steps miss.
            "black_box", black > 0.02, black,
            f"Square with {QUERIES} queries fools {black:.1%} that PGD-20 does not",
        ),
        Flag(
            "unbounded", robust["unbounded"] > 0, robust["unbounded"],
            f"PGD-{UNBOUNDED_STEPS} with linf eps 1 leaves {robust['unbounded']:.1%} right",
        ),
        Flag("zero_gradient", none > 0, none, f"{none:.1%} have a gradient of exactly 0"),
        Flag(
            "restart", not low <= robust["again"] <= high, changed,
            f"another random start of PGD-20 leaves {robust['again']:.1%} right instead of "
            f"{robust['pgd']:.1%} (95% interval {low:.1%} to {high:.1%})",
        ),
    ]  # fmt: skip
