"""Clean and robust accuracy, image by image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from repsim.attacks import AttackSpec, inside, perturbation_norm, run_attack
from repsim.attacks.autoattack import stages
from repsim.attacks.fast import compiled
from repsim.attacks.gradient import check_logits
from repsim.attacks.table import ATTACKS, COUPLED, INNER, MINIMUM_NORM
from repsim.checkpoint import LoadedModel
from repsim.data import ImageData, batches
from repsim.errors import UserError
from repsim.models import Smoothed
from repsim.progress import Progress, Silent
from repsim.runtime import Runtime

VERDICTS = ("any", "last")
DRAWS = 10  # of a network that draws at random, for each verdict


@dataclass
class Found:
    """What an attack did to each image.

    Attributes:
        prediction: int64 (samples,); the clean prediction where an image was not attacked
            because it was misclassified without.
        norm: float32 (samples,), size of the perturbation in the attack's norm.
        lost: bool (samples,), misclassified clean or by the verdict.
        loss: float32 (samples,), what the attack climbed, at the result; NaN where unknown.
        first_success: int64 (samples,), steps until an iterate was misclassified; -1 where none
            was, or where it is not known.
        stage: int64 (samples,), number of AutoAttack's stage that succeeded, -1 for none; None
            for other attacks.
        seconds: wall time, for the images that are right clean, the only ones attacked.
    """

    prediction: np.ndarray
    norm: np.ndarray
    lost: np.ndarray
    loss: np.ndarray
    first_success: np.ndarray
    stage: np.ndarray | None
    seconds: float


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
        clean_seconds: wall time of the clean pass.
        random: whether the network gave two answers to the same images.
        found: by condition.
    """

    model: str
    data: ImageData
    attacks: list[AttackSpec]
    verdict: str
    seed: int
    clean: np.ndarray
    clean_seconds: float
    random: bool
    found: dict[str, Found] = field(default_factory=dict)

    @property
    def right(self) -> np.ndarray:
        """bool (samples,): classified correctly clean."""
        return self.clean == self.data.labels.numpy()

    @property
    def lost(self) -> dict[str, np.ndarray]:
        """bool (samples,) by condition; `worst`, over all attacks, controls apart, at the end."""
        lost = {name: found.lost for name, found in self.found.items()}
        # An attack without a bound reaches every image: it says how far, not whether.
        bounded = [a for a in self.attacks if not (a.name in ATTACKS and unbounded(a))]
        attacks = [a.condition for a in bounded if not a.is_control]
        if attacks:
            lost["worst"] = np.logical_or.reduce([lost[name] for name in attacks])
        return lost

    def table(self) -> pd.DataFrame:
        """A row an image: index, label, clean, then what each attack did to it."""
        columns: dict[str, Any] = {
            "index": self.data.index.numpy(),
            "label": self.data.labels.numpy(),
            "clean": self.clean,
        }
        for name, found in self.found.items():
            columns[f"{name}_prediction"] = found.prediction
            columns[f"{name}_norm"] = found.norm
            columns[f"{name}_moved"] = found.norm > 0
            columns[f"{name}_lost"] = found.lost
            columns[f"{name}_loss"] = found.loss
            columns[f"{name}_first_success"] = found.first_success
        return pd.DataFrame(columns)

    def summary(self) -> dict[str, Any]:
        """The accuracies with 95% intervals, as plain values.

        Robust accuracy is the fraction of all images that are classified correctly clean and
        under the attack; `worst` is over all attacks asked for, controls apart. `median_norm` is
        that of the perturbations of images that were lost to the attack.
        """
        right, lost = self.right, self.lost
        summary: dict[str, Any] = {
            "model": self.model,
            "data": self.data.name,
            "split": self.data.split,
            "samples": len(self.data),
            "verdict": self.verdict,
            "seed": self.seed,
            "attacks": [a.to_json() for a in self.attacks],
            "random_network": self.random,
            "clean_accuracy": float(right.mean()),
            "clean_accuracy_ci": accuracy_interval(int(right.sum()), len(right)),
            "robust_accuracy": {name: float((~v).mean()) for name, v in lost.items()},
            "robust_accuracy_ci": {
                name: accuracy_interval(int((~v).sum()), len(v)) for name, v in lost.items()
            },
            "median_norm": {
                name: float(np.median(f.norm[f.lost & right])) if (f.lost & right).any() else None
                for name, f in self.found.items()
            },
            "images_per_second": {
                "clean": round(len(right) / self.clean_seconds, 1),
                **{n: round(int(right.sum()) / f.seconds, 1) for n, f in self.found.items()},
            },
        }
        if cascades := {
            a.condition: self._after(a) for a in self.attacks if a.name == "autoattack"
        }:
            summary["robust_accuracy_after"] = cascades
        return summary

    def _after(self, spec: AttackSpec) -> dict[str, float]:
        """Robust accuracy after each stage of AutoAttack."""
        found = self.found[spec.condition]
        assert found.stage is not None
        names = [stage.name for stage in stages(spec.params["version"], spec.norm)]
        robust = [self.right & ((found.stage < 0) | (found.stage > i)) for i in range(len(names))]
        return {name: float(r.mean()) for name, r in zip(names, robust, strict=True)}


def unbounded(spec: AttackSpec) -> bool:
    """Whether it has an eps, and none was given."""
    return "eps" in spec.params and spec.params["eps"] is None


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
    compile: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy on clean images and under each attack, with every image's own result.

    Images that are misclassified clean are lost already and not attacked; the others go through
    the attack in full batches. An attack may run on a faster copy of the network; what counts is
    what the network itself says of its images.

    Args:
        loaded: the network; it needs a linear head.
        data: the images.
        attacks: what to run; conditions must differ.
        batch_size: images at once; changes no random draw.
        runtime: device, precision, layout; measured defaults if not given.
        seed: of the attacks' draws.
        verdict: "any": an image is lost if any iterate fools the network, so it leaves the batch
            there; "last": if the last iterate does, as most published numbers were counted.
        compile: make the attacks on a compiled copy; see `repsim.attacks.fast.compiled`.
        progress: told of every batch.

    Raises:
        UserError: no linear head, unknown verdict, two attacks of one name, outputs that are not
            finite, not (batch, classes), or probabilities.
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
    model = runtime.place(loaded.model).eval()

    began = time.perf_counter()
    parts: list[Tensor] = []
    with torch.no_grad(), progress.task("clean", len(data), unit="img") as task:
        for images, labels, _ in batches(data, batch_size, runtime.device):
            logits = mean_logits(model, runtime.images(images), 1)
            require_logits(logits, labels, len(data.classes), loaded.name)
            parts.append(logits.argmax(1).cpu())
            task.advance(len(labels))
    clean = torch.cat(parts)
    seconds = time.perf_counter() - began
    random = draws_at_random(model, data, runtime)
    if random and not isinstance(loaded.model, Smoothed):  # which is random on purpose
        progress.say(
            f"{loaded.name} gives other logits to the same images each time: something random is "
            "active in eval mode; attacks run at full strength, predictions are means over "
            f"{DRAWS} draws; use autoattack,version=rand or eot=20"
        )
    result = Evaluation(
        loaded.name, data, list(attacks), verdict, seed, clean.numpy(), seconds, random
    )
    target: nn.Module = model
    if compile and attacks and len(data) > 1:
        first, _, _ = next(iter(batches(data, batch_size, runtime.device)))
        with runtime.autocast():
            target = compiled(model, runtime.images(first))
    for spec in attacks:
        result.found[spec.condition] = _attack(
            loaded, model if spec.name in INNER else target, spec, data, clean, batch_size, runtime,
            seed, verdict, random, progress,
        )  # fmt: skip
    return result


def draws_at_random(model: nn.Module, data: ImageData, runtime: Runtime) -> bool:
    """Whether the network in eval mode gives two answers to the same images."""
    few = data.take(torch.arange(min(8, len(data))))
    images, _, _ = next(iter(batches(few, 8, runtime.device)))
    first, second = (mean_logits(model, runtime.images(images), 1).float() for _ in range(2))
    scale = first.abs().amax().clamp_min(1e-6)
    return bool((first - second).abs().amax() > 1e-3 * scale)


def _attack(
    loaded: LoadedModel,
    target: nn.Module,
    spec: AttackSpec,
    data: ImageData,
    clean: Tensor,
    batch_size: int,
    runtime: Runtime,
    seed: int,
    verdict: str,
    random: bool,
    progress: Progress,
) -> Found:
    """One attack on all images that are right clean."""
    began = time.perf_counter()
    right = torch.nonzero(clean == data.labels)[:, 0]
    rest = data.take(right)
    columns = {
        "prediction": clean.clone(),
        "norm": torch.zeros(len(data)),
        "lost": clean != data.labels,
        "loss": torch.full((len(data),), torch.nan),
        "first_success": torch.full((len(data),), -1),
        "stage": torch.full((len(data),), -1),
    }
    with progress.task(spec.condition, len(rest), unit="img") as task:
        for part in _parts(len(rest), batch_size, whole=spec.name in COUPLED):
            rows, images = right[part], rest.take(part)
            (batch,) = batches(images, max(len(part), 1), runtime.device)
            found = _attack_batch(
                loaded, target, spec, *batch, runtime, seed, verdict, random, progress.say
            )
            for name, values in found.items():
                columns[name][rows] = values.cpu().to(columns[name].dtype)
            task.advance(len(rows))
    arrays = {name: values.numpy() for name, values in columns.items()}
    if spec.name != "autoattack":
        arrays["stage"] = None  # type: ignore[assignment]
    return Found(**arrays, seconds=time.perf_counter() - began)


def _attack_batch(
    loaded: LoadedModel,
    target: nn.Module,
    spec: AttackSpec,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    runtime: Runtime,
    seed: int,
    verdict: str,
    random: bool,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """Columns of `Found`, (batch,) each, of one batch of `batches`."""
    images = runtime.images(images)
    record: dict[str, Tensor] = {}
    mode = "evaluate" if verdict == "any" else "last"
    # Nothing stops where a success may be luck, where none is known, or for the smallest norm.
    smallest = spec.name in MINIMUM_NORM and spec.params["eps"] is None
    if random or smallest or spec.name in INNER:
        mode = "represent"
    with runtime.autocast():
        attacked = run_attack(
            spec, target, images, labels, ids=keys, seed=seed, mode=mode, record=record,
            tell=say,
        )  # fmt: skip
    attacked = inside(spec, images, attacked)
    logits = mean_logits(loaded.model, attacked, DRAWS if random else 1)
    require_logits(logits, labels, logits.shape[-1], f"{loaded.name} under {spec.condition}")
    prediction = logits.argmax(1)
    lost = prediction != labels
    known = _known(record, len(labels))
    if verdict == "any" and "first_success" in known and spec.name not in ATTACKS:
        # A user's attack may say that an earlier iterate fooled the network; ours return it.
        lost |= known["first_success"] >= 0
    norm = perturbation_norm(attacked - images, spec.norm)
    return {"prediction": prediction, "norm": norm, "lost": lost, **known}


def _known(record: dict[str, Tensor], images: int) -> dict[str, Tensor]:
    """What an attack recorded, as far as it is a number an image."""
    return {
        name: record[name]
        for name in ("loss", "first_success", "stage")
        if isinstance(record.get(name), Tensor) and record[name].shape == (images,)
    }


def _parts(images: int, batch_size: int, *, whole: bool) -> list[Tensor]:
    """Positions of each batch; with `whole` no small rest, which a coupled attack cannot use."""
    parts = list(torch.arange(images).split(batch_size)) if images else []
    if whole and len(parts) > 1 and len(parts[-1]) < batch_size // 2:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@torch.no_grad()
def mean_logits(model: nn.Module, images: Tensor, draws: int) -> Tensor:
    """Logits (batch, classes), or of several draws the log of the mean probability.

    In float32, whatever precision the attacks run in.
    """
    with torch.autocast(images.device.type, enabled=False):
        if draws == 1:
            return model(images)
        mean = torch.stack([model(images).float().softmax(1) for _ in range(draws)]).mean(0)
        # A confident network's probabilities round to 0, and their log is not finite.
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()


def require_logits(logits: Tensor, labels: Tensor, classes: int, name: str) -> None:
    """Refuse outputs that cannot be logits of these classes.

    Raises:
        UserError: another shape than (batch, classes), NaN or inf among them, or probabilities.
    """
    if not isinstance(logits, Tensor) or logits.shape != (len(labels), classes):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{name}: expected logits of shape ({len(labels)}, {classes}); got {came}")
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"{name}: expected finite logits; got NaN or inf; try --precision float32")
    check_logits(logits, labels)
