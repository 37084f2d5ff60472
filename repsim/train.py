"""Training: batches -> objective -> optimiser -> a row of history an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import repsim
from repsim.attacks import AttackSpec, run_attack
from repsim.augment import augment
from repsim.checkpoint import normalisation, read_plain, save_checkpoint
from repsim.data import ImageData, channel_statistics, to_float
from repsim.errors import UserError
from repsim.files import check_writable, replacing
from repsim.hooks import head_name
from repsim.keyed import mix_seed
from repsim.models import Normalized, build_model
from repsim.objectives import OBJECTIVES
from repsim.progress import Progress, Silent
from repsim.registry import resolve
from repsim.runtime import Runtime

Objective = Callable[..., Any]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome besides data, model and attack.

    Attributes:
        scheme: entry of `OBJECTIVES` or the user's own.
        scenario: "st" (no attack) or "at" (trained on attacked images).
        epochs: passes over the training images.
        batch_size: images a step; a smaller last batch is left out (other images each epoch).
        lr: peak learning rate.
        optimizer: "sgd" (Nesterov momentum) or "adam".
        momentum: of sgd.
        weight_decay: added to the gradient.
        schedule: "onecycle", "cosine" or "constant".
        average: decay a step of an exponential moving average of the weights, which is then
            what the checkpoint keeps; 0 for none.
        augment: "none", "crop" or "crop-flip".
        attack_mode: mode of the network while its attack is made, "eval" or "train" (batch
            statistics, and running statistics that move, as in some papers' code).
        compile: run forwards through torch.compile.
        seed: initial weights, order, augmentation, attack.
    """

    scheme: str = "sl"
    scenario: str = "st"
    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    average: float = 0.0
    augment: str = "none"
    attack_mode: str = "eval"
    compile: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            UserError: names the option, what was expected and what came.
        """
        choices = {
            "scenario": ("st", "at"),
            "optimizer": ("sgd", "adam"),
            "schedule": ("onecycle", "cosine", "constant"),
            "attack_mode": ("eval", "train"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                option = name.replace("_", "-")
                raise UserError(
                    f"--{option} expects one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.epochs < 1 or self.batch_size < 2:
            raise UserError(
                f"--epochs expects at least 1 and --batch-size at least 2; got {self.epochs} and "
                f"{self.batch_size}"
            )
        if not self.lr > 0 or self.weight_decay < 0 or not 0 <= self.average < 1:
            raise UserError(
                "--lr expects a number above 0, --weight-decay one of at least 0, --average one in "
                f"[0, 1); got {self.lr:g}, {self.weight_decay:g} and {self.average:g}"
            )


@dataclass
class TrainReport:
    """What `train` did.

    Attributes:
        path: the checkpoint.
        status: "trained", "continued" or "already done".
        history: a row an epoch: epoch, loss, what the objective measures, lr, seconds,
            images_per_second.
    """

    path: Path
    status: str
    history: list[dict[str, float]]


def train(
    data: ImageData,
    arch: str,
    out: str | Path,
    config: TrainConfig,
    *,
    attack: AttackSpec | None = None,
    arch_args: dict[str, Any] | None = None,
    runtime: Runtime | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainReport:
    """Train a network and write its checkpoint.

    After every epoch the state goes to `OUT.resume`; the same call continues from there, on the
    CPU to the same bits as an uninterrupted run: order, augmentation and attacks are keyed by
    (seed, epoch, image), not by a generator's state.

    Args:
        data: the training split.
        arch: a name that `build_model` takes.
        out: the checkpoint's file.
        config: the settings.
        attack: the training attack; needed by scenario "at", refused by "st".
        arch_args: further arguments of the architecture.
        runtime: device, precision, layout; measured defaults if not given.
        mean, std: normalisation inside the model; those of the training images by default.
        overwrite: replace a checkpoint of another request.
        progress: told of every step.

    Raises:
        UserError: settings that cannot be meant, an existing checkpoint of another request, or
            a loss that is not finite (the last good epoch stays in `OUT.resume`).
    """
    out = Path(out)
    progress = progress or Silent()
    config.check()
    if (attack is None) != (config.scenario == "st"):
        raise UserError(
            f"scenario {config.scenario} expects {'no' if attack else 'a'} training attack"
        )
    check_writable(out)
    objective: Objective = resolve(config.scheme, OBJECTIVES, kind="scheme")
    _, channels, height, size = data.images.shape
    if height != size:
        raise UserError(
            f"training expects square images; {data.name} has {size}×{height}; give --image-size"
        )
    runtime = runtime or Runtime.of(training=True)
    if (mean is None) != (std is None):
        raise UserError("--mean and --std expect each other; give both or neither")
    if mean is None:
        mean, std = channel_statistics(data.images)
    request: dict[str, Any] = {
        "arch": arch,
        "arch_args": arch_args or {},
        "classes": list(data.classes),
        "channels": channels,
        "image_size": size,
        **normalisation(mean, std, channels),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "samples": len(data)},
        "scheme": config.scheme,
        "scenario": config.scenario,
        "config": {**asdict(config), **asdict(runtime)},
        "attack": attack.to_json() if attack else None,
        "seed": config.seed,
    }
    resume_path = out.with_name(out.name + ".resume")
    if out.is_file() and not overwrite:
        return _existing(out, request)
    state = None if overwrite else _resume_state(resume_path, request)

    torch.manual_seed(mix_seed(config.seed))
    encoder = build_model(
        arch, classes=len(data.classes), channels=channels, image_size=size, **(arch_args or {})
    )
    model = runtime.place(Normalized(encoder, request["mean"], request["std"]))
    run = TrainingRun(model, data, objective, config, attack, runtime)
    if state is not None:
        run.load(state)
        progress.say(f"continuing {resume_path.name} after epoch {run.epoch} of {config.epochs}")
    with progress.task("training", config.epochs * run.steps, done=run.epoch * run.steps) as task:
        while run.epoch < config.epochs:
            row = run.one_epoch(task.advance)
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"the loss is {row['loss']} in epoch {run.epoch}; expected a finite one; try a "
                    f"lower --lr than {config.lr:g}; the epoch before is kept in {resume_path.name}"
                )
            progress.row(row)
            with replacing(resume_path) as beside:
                torch.save({"request": request, **run.state()}, beside)

    head = head_name(model, runtime.images(to_float(data.images[:2])))
    final = run.average.module if run.average is not None else model
    assert isinstance(final, Normalized)
    save_checkpoint(
        out,
        final.encoder.state_dict(),
        head=[head] if head else [],
        history=run.history,
        repsim_version=repsim.__version__,
        **request,
    )
    resume_path.unlink(missing_ok=True)
    return TrainReport(out, "continued" if state else "trained", run.history)


class TrainingRun:
    """The state of a training run, and one epoch of it."""

    def __init__(
        self,
        model: Normalized,
        data: ImageData,
        objective: Objective,
        config: TrainConfig,
        attack: AttackSpec | None,
        runtime: Runtime,
    ) -> None:
        self.model, self.config, self.runtime = model, config, runtime
        self.objective, self.attack = objective, attack
        self.images = data.images.to(runtime.device)
        self.labels, self.keys = data.labels.to(runtime.device), data.keys.to(runtime.device)
        self.batch_size = min(config.batch_size, len(data))
        self.steps = len(data) // self.batch_size
        self.optimizer = _optimizer(model, config)
        self.scheduler = _scheduler(self.optimizer, config, config.epochs * self.steps)
        self.average: AveragedModel | None = None
        if config.average > 0:
            decay = get_ema_multi_avg_fn(config.average)
            self.average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        self.forward: nn.Module = model
        if config.compile:
            self.forward = torch.compile(model)  # type: ignore[assignment]
        self.epoch = 0
        self.history: list[dict[str, float]] = []

    def one_epoch(self, advance: Callable[[int], None]) -> dict[str, float]:
        """One pass over the images; its row of history, with means over the steps."""
        config, began = self.config, time.perf_counter()
        seed = mix_seed(config.seed, self.epoch + 1)
        torch.manual_seed(seed)  # for what draws without keys, such as dropout
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        order = order.to(self.images.device)
        lr = self.optimizer.param_groups[0]["lr"]
        sums: dict[str, Tensor] = {}
        self.model.train()
        for step in range(self.steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            labels, keys = self.labels[rows], self.keys[rows]
            pixels = augment(self.images[rows], config.augment, keys=keys, seed=seed)
            images = self.runtime.images(to_float(pixels))

            def attack(x: Tensor, y: Tensor, keys: Tensor = keys) -> Tensor:
                assert self.attack is not None
                return run_attack(
                    self.attack, self.forward, x, y,
                    ids=keys, seed=seed, mode="last", train_mode=config.attack_mode == "train",
                )  # fmt: skip

            with self.runtime.autocast():
                result = self.objective(
                    self.forward, images, labels, attack if self.attack else None
                )
            loss, numbers = result if isinstance(result, tuple) else (result, {})
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            for name, value in {"loss": loss, **numbers}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
            advance(1)
        means = {name: float(value) / self.steps for name, value in sums.items()}
        seconds = time.perf_counter() - began
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            **means,
            "lr": lr,
            "seconds": round(seconds, 3),
            "images_per_second": round(self.steps * self.batch_size / seconds, 1),
        }
        self.history.append(row)
        return row

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.epoch, self.history = state["epoch"], state["history"]


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum,
        weight_decay=config.weight_decay, nesterov=config.momentum > 0,
    )  # fmt: skip


def _scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    if config.schedule == "onecycle":
        # One step more than are made: the scheduler also steps after the last one.
        return schedulers.OneCycleLR(
            optimizer, config.lr, total_steps=steps + 1, cycle_momentum=False
        )
    if config.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, steps)
    return schedulers.ConstantLR(optimizer, factor=1.0)


def _existing(out: Path, request: dict[str, Any]) -> TrainReport:
    """A finished checkpoint: done if it is of the same request, else refused."""
    content = read_plain(out)
    found = content if isinstance(content, dict) else {}
    different = _difference(found, request)
    if different:
        raise UserError(
            f"--out {out} holds another checkpoint ({different}); give another name or --overwrite"
        )
    return TrainReport(out, "already done", found["history"])


def _resume_state(path: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    state = read_plain(path)
    if not isinstance(state, dict) or "request" not in state:
        raise UserError(f"{path}: expected the state of an interrupted training; remove it")
    different = _difference(state["request"], request)
    if different:
        raise UserError(
            f"{path} is an interrupted training with other settings ({different}); repeat those to "
            "continue it, or give --overwrite to start anew"
        )
    return dict(state)


def _difference(found: dict[str, Any], request: dict[str, Any]) -> str:
    """The first setting in which two requests differ, as text; empty if none does."""
    for key, wanted in request.items():
        there = found.get(key)
        if isinstance(wanted, dict) and isinstance(there, dict):
            inner = _difference(there, wanted)
            if inner:
                return f"{key}.{inner}"
        elif there != wanted:
            return f"{key} {there!r} there, {wanted!r} asked for"
    return ""
