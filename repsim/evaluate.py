"""Clean and robust accuracy, image by image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import betaincinv
from torch import Tensor

from repsim.attacks import AttackSpec, perturbation_norm, run_attack
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, batches
from repsim.errors import UserError
from repsim.progress import Progress, Silent
from repsim.runtime import Runtime

VERDICTS = ("any", "last")


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        model: the checkpoint's name.
        data: the evaluated images.
        attacks: the attacks, in the order asked for.
        verdict: "any" or "last".
        seed: of the attacks' draws.
        clean: int64 (samples,), predicted classes of the clean images.
        predictions: by condition, int64 (samples,); the clean prediction where an image was
            not attacked because it was misclassified without.
        norms: by condition, float32 (samples,), sizes of the perturbations in the attack's norm.
        lost: by condition, bool (samples,): misclassified clean or by the verdict.
        seconds: by condition ("clean" too), wall time; of an attack for the images that are
            right clean, the only ones that it is made for.
    """

    model: str
    data: ImageData
    attacks: list[AttackSpec]
    verdict: str
    seed: int
    clean: np.ndarray
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    lost: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """A row an image: index, label, clean, then prediction, norm and lost by attack."""
        columns: dict[str, Any] = {
            "index": self.data.index.numpy(),
            "label": self.data.labels.numpy(),
            "clean": self.clean,
        }
        for name in self.predictions:
            columns[f"{name}_prediction"] = self.predictions[name]
            columns[f"{name}_norm"] = self.norms[name]
            columns[f"{name}_lost"] = self.lost[name]
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, Any]:
        """The accuracies with 95% intervals, as plain values.

        Robust accuracy is the fraction of all images that are classified correctly clean and
        under the attack; `worst` is over all attacks asked for, controls apart.
        """
        lost = dict(self.lost)
        attacks = [a.condition for a in self.attacks if not a.is_control]
        if attacks:
            lost["worst"] = np.logical_or.reduce([self.lost[name] for name in attacks])
        right = self.clean == self.data.labels.numpy()
        return {
            "model": self.model,
            "data": self.data.name,
            "split": self.data.split,
            "samples": len(self.data),
            "verdict": self.verdict,
            "seed": self.seed,
            "attacks": [a.to_json() for a in self.attacks],
            "clean_accuracy": float(right.mean()),
            "clean_accuracy_ci": accuracy_interval(int(right.sum()), len(right)),
            "robust_accuracy": {name: float((~v).mean()) for name, v in lost.items()},
            "robust_accuracy_ci": {
                name: accuracy_interval(int((~v).sum()), len(v)) for name, v in lost.items()
            },
            "images_per_second": {
                name: round((len(right) if name == "clean" else int(right.sum())) / s, 1)
                for name, s in self.seconds.items()
            },
        }


def accuracy_interval(successes: int, samples: int, level: float = 0.95) -> list[float]:
    """The exact binomial interval (Clopper and Pearson 1934) of a fraction.

    It is the uncertainty from the draw of images; that from training seeds is another one.
    """
    tail = (1 - level) / 2
    low = betaincinv(successes, samples - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, samples - successes, 1 - tail) if successes < samples else 1.0
    return [float(low), float(high)]


def evaluate(
    loaded: LoadedModel,
    data: ImageData,
    attacks: Sequence[AttackSpec],
    *,
    batch_size: int = 256,
    runtime: Runtime | None = None,
    seed: int = 0,
    verdict: str = "any",
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy on clean images and under each attack, with every image's own result.

    Images that are misclassified clean are lost already and not attacked; the others go through
    the attack in full batches.

    Args:
        loaded: the network; it needs a linear head.
        data: the images.
        attacks: what to run; conditions must differ.
        batch_size: images at once; changes no random draw.
        runtime: device, precision, layout; measured defaults if not given.
        seed: of the attacks' draws.
        verdict: "any": an image is lost if any iterate fools the network, so it leaves the batch
            there; "last": if the last iterate does, as most published numbers were counted.
        progress: told of every batch.

    Raises:
        UserError: no linear head, unknown verdict, two attacks of one name, logits that are
            not finite or not (batch, classes).
    """
    if verdict not in VERDICTS:
        raise UserError(f"--verdict expects one of {', '.join(VERDICTS)}; got {verdict!r}")
    names = [a.condition for a in attacks]
    if len(set(names)) < len(names):
        raise UserError(
            f"attacks expect a name each; got {', '.join(names)}; name them apart with as=NAME"
        )
    loaded.require_head("an evaluation")
    progress = progress or Silent()
    runtime = runtime or Runtime.of()
    model = runtime.place(loaded.model)

    began = time.perf_counter()
    parts: list[Tensor] = []
    with torch.no_grad(), progress.task("clean", len(data), unit="img") as task:
        for images, labels, _ in batches(data, batch_size, runtime.device):
            with runtime.autocast():
                logits = model(runtime.images(images))
            check_logits(logits, len(labels), len(data.classes), loaded.name)
            parts.append(logits.argmax(1).cpu())
            task.advance(len(labels))
    clean = torch.cat(parts)
    result = Evaluation(loaded.name, data, list(attacks), verdict, seed, clean.numpy())
    result.seconds["clean"] = time.perf_counter() - began

    right = torch.nonzero(clean == data.labels)[:, 0]
    rest = data.take(right)
    for spec in attacks:
        began = time.perf_counter()
        prediction, norm = clean.clone(), torch.zeros(len(data))
        lost = clean != data.labels
        with progress.task(spec.condition, len(rest), unit="img") as task:
            for i, batch in enumerate(batches(rest, batch_size, runtime.device)):
                rows = right[i * batch_size : (i + 1) * batch_size]
                found = _attack_batch(loaded, spec, *batch, runtime, seed, verdict)
                prediction[rows], norm[rows], lost[rows] = found
                task.advance(len(rows))
        result.predictions[spec.condition] = prediction.numpy()
        result.norms[spec.condition] = norm.numpy()
        result.lost[spec.condition] = lost.numpy()
        result.seconds[spec.condition] = time.perf_counter() - began
    return result


def _attack_batch(
    loaded: LoadedModel,
    spec: AttackSpec,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    runtime: Runtime,
    seed: int,
    verdict: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, perturbation norm and verdict (batch,) of one batch of `batches`."""
    images = runtime.images(images)
    record: dict[str, Tensor] = {}
    mode = "evaluate" if verdict == "any" else "last"
    with runtime.autocast():
        attacked = run_attack(
            spec, loaded.model, images, labels, ids=keys, seed=seed, mode=mode, record=record
        )
        with torch.no_grad():
            logits = loaded.model(attacked)
    check_logits(logits, len(labels), logits.shape[-1], f"{loaded.name} under {spec.condition}")
    prediction = logits.argmax(1)
    lost = prediction != labels
    if verdict == "any" and "first_success" in record:
        lost |= record["first_success"] >= 0
    norm = perturbation_norm(attacked - images, spec.norm)
    return prediction.cpu(), norm.cpu(), lost.cpu()


def check_logits(logits: Tensor, batch: int, classes: int, name: str) -> None:
    """Refuse outputs that cannot be logits.

    Raises:
        UserError: another shape than (batch, classes), or NaN or inf among them.
    """
    if not isinstance(logits, Tensor) or logits.shape != (batch, classes):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{name}: expected logits of shape ({batch}, {classes}); got {came}")
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"{name}: expected finite logits; got NaN or inf; try --precision float32")
