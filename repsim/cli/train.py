"""`repsim train`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.options import (
    attack_settings,
    attack_size_options,
    data_options,
    numbers,
    out_option,
    output_options,
    overwrite_option,
    run_options,
    samples_option,
)


@click.command()
@data_options("train")
@click.option(
    "--model",
    default="resnet18",
    show_default=True,
    metavar="NAME",
    help="Architecture: a name, torchvision/NAME, timm/NAME or file.py:function.",
)
@click.option(
    "--scheme",
    default="sl",
    show_default=True,
    metavar="NAME",
    help="Learning scheme: sl (supervised), or file.py:function.",
)
@click.option(
    "--scenario",
    type=click.Choice(["st", "at"]),
    default="st",
    show_default=True,
    help="st: on the images; at: on attacked images.",
)
@click.option(
    "--attack", metavar="ATTACK", help="Training attack of scenario at. [default: pgd,steps=10]"
)
@click.option(
    "--attack-mode",
    type=click.Choice(["eval", "train"]),
    default="eval",
    show_default=True,
    help="Mode of the network while it is attacked.",
)
@attack_size_options
@click.option("--epochs", type=int, default=30, show_default=True)
@click.option("--lr", type=float, help="Peak learning rate. [default: 0.1 for sgd, 0.001 for adam]")
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default="sgd", show_default=True)
@click.option("--momentum", type=float, default=0.9, show_default=True)
@click.option("--weight-decay", type=float, default=5e-4, show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(["onecycle", "cosine", "constant"]),
    default="onecycle",
    show_default=True,
)
@click.option(
    "--average",
    type=float,
    default=0.0,
    show_default=True,
    metavar="DECAY",
    help="Decay of an average of the weights, which is then kept; 0: none.",
)
@click.option(
    "--augment",
    type=click.Choice(["none", "crop", "crop-flip"]),
    help="Augmentation. [default: what is usual for the data set]",
)
@click.option(
    "--channels-last/--no-channels-last",
    default=True,
    show_default=True,
    help="Memory layout.",
)
@click.option("--compile", "compile_", is_flag=True, help="Run through torch.compile.")
@click.option(
    "--mean",
    callback=numbers,
    metavar="N,N,N",
    help="Normalisation. [default: the training images']",
)
@click.option("--std", callback=numbers, metavar="N,N,N")
@samples_option(None)
@run_options(128)
@out_option(None, "The checkpoint to write.")
@overwrite_option
@output_options
def train(
    data: str, data_root: Path | None, split: str, download: bool, image_size: int | None,
    model: str, scheme: str, scenario: str, attack: str | None, attack_mode: str,
    eps: str | None, norm: str | None, steps: str | None, step_size: str | None,
    restarts: str | None, epochs: int, lr: float | None, optimizer: str, momentum: float,
    weight_decay: float, schedule: str, average: float, augment: str | None,
    channels_last: bool, compile_: bool, mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None, samples: int | None,
    device: str, precision: str, batch_size: int, seed: int, out: Path, overwrite: bool,
    json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Train a checkpoint. An interrupted run continues when the same command is given again.

    \b
    repsim train --data cifar10 --model resnet18 --out st.pt
    repsim train --data cifar10 --model resnet18 --scenario at --out at.pt
    repsim train --data digits --model resnet20 --scenario at \\
        --attack pgd,steps=1,step_size=1.25eps --epochs 20 --batch-size 64 --out at.pt
    """
    from repsim import train as library
    from repsim.attacks import parse_attack
    from repsim.augment import default_augmentation
    from repsim.cli.common import check_outputs, echo_next, write_json
    from repsim.data import default_eps, draw, load_data
    from repsim.errors import UserError
    from repsim.progress import reporter
    from repsim.runtime import Runtime

    check_outputs(out, json_file)
    progress = reporter(quiet=quiet)
    images = load_data(data, split, root=data_root, download=download, image_size=image_size)
    if samples is not None:
        if samples > len(images):
            progress.say(f"{images.name}/{split} has {len(images)} images; all of them are used")
        images = draw(images, samples)
    settings = attack_settings(eps, norm, steps, step_size, restarts)
    spec = None
    if scenario == "at":
        text = attack or "pgd"
        if attack is None:
            settings.setdefault("steps", "10")
        spec = parse_attack(text, eps=default_eps(images.name), defaults=settings)
    elif attack or settings:
        raise UserError("--attack and its settings are for --scenario at; the scenario here is st")
    config = library.TrainConfig(
        scheme=scheme, scenario=scenario, epochs=epochs, batch_size=batch_size,
        lr=lr if lr is not None else (0.1 if optimizer == "sgd" else 1e-3),
        optimizer=optimizer, momentum=momentum, weight_decay=weight_decay, schedule=schedule,
        average=average, augment=augment or default_augmentation(images.name),
        attack_mode=attack_mode, compile=compile_, seed=seed,
    )  # fmt: skip
    runtime = Runtime.of(
        device, precision, channels_last=channels_last,
        training=True,
    )  # fmt: skip
    against = f", attacked by {spec.text}" if spec else ""
    progress.say(
        f"{model} on {len(images)} images of {images.name}/{split}, {epochs} epochs{against}; "
        f"{runtime.device}, {runtime.precision}"
    )
    report = library.train(
        images, model, out, config, attack=spec, runtime=runtime,
        mean=list(mean) if mean else None,
        std=list(std) if std else None,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
    write_json(json_file, {"model": str(out.name), "history": report.history})
    if not quiet:
        done = "is already there" if report.status == "already done" else report.status
        click.echo(f"{out}: {done}; {len(report.history)} epochs")
        echo_next(f"repsim evaluate --model {out} --attack pgd",
                  f"repsim extract --model {out} --attack pgd")  # fmt: skip
