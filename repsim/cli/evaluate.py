"""`repsim evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import (
    DEFAULT_SAMPLES,
    attack_settings,
    attack_size_options,
    data_options,
    foreign_options,
    output_options,
    run_options,
    samples_option,
)

if TYPE_CHECKING:
    from repsim.cross import Transfer
    from repsim.evaluate import Evaluation
    from repsim.masking import Flag


@click.command()
@click.argument("networks", nargs=-1, metavar="[NETWORK...]")
@click.option(
    "--model",
    metavar="FILE|NAME",
    help="Checkpoint, foreign state dict (with --arch), or architecture.",
)
@foreign_options
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="ATTACK",
    help="NAME, NAME,key=value,..., or file.py:function; may be repeated. Names: pgd, fgsm, "
    "r-fgsm, mim, apgd, autoattack, square, fab, cw-l2, deepfool, unseen, noise, ...; the README "
    "has the table. [default: pgd]",
)
@attack_size_options
@click.option(
    "--verdict",
    type=click.Choice(["any", "last"]),
    default="any",
    show_default=True,
    help="An image is lost if any iterate fools the network, or if the last one does.",
)
@click.option(
    "--cross",
    is_flag=True,
    help="Attack each NETWORK and show its images to all of them: the transfer matrix.",
)
@click.option(
    "--masking/--no-masking",
    default=True,
    show_default=True,
    help="Look for signs of masked gradients on 128 images.",
)
@click.option(
    "--smoothed",
    type=click.IntRange(min=1),
    metavar="N",
    help="Inference as the mean over N random transformations; attacks average over them too.",
)
@click.option(
    "--compile",
    is_flag=True,
    help="Make the attacks on a compiled copy: 20 s once, worth it for minutes of work.",
)
@data_options("test")
@samples_option(DEFAULT_SAMPLES)
@run_options(256)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.csv",
    help="Also write a row an image (with --cross: a row a pair).",
)
@output_options
def evaluate(
    networks: tuple[str, ...], model: str | None, arch: str | None,
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    attacks: tuple[str, ...], eps: str | None, norm: str | None, steps: str | None,
    step_size: str | None, restarts: str | None, verdict: str, cross: bool, masking: bool,
    smoothed: int | None, compile: bool, data: str | None, data_root: Path | None, split: str,
    download: bool, image_size: int | None, samples: int, device: str, precision: str,
    batch_size: int, seed: int, out: Path | None, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Clean and robust accuracy with 95% intervals.

    \b
    repsim evaluate --model ckpt.pt --attack pgd
    repsim evaluate --model ckpt.pt --attack autoattack
    repsim evaluate --model ckpt.pt --attack pgd --attack unseen --attack mim,surrogate=other.pt
    repsim evaluate --cross a.pt b.pt c.pt
    """
    from dataclasses import replace

    from repsim import evaluate as library
    from repsim.attacks.table import INNER
    from repsim.cli.common import attack_specs, check_outputs, model_and_data, write_json
    from repsim.errors import UserError
    from repsim.files import replacing
    from repsim.progress import reporter
    from repsim.runtime import Runtime

    names = _names(networks, model, cross)
    if cross and (smoothed or compile or verdict != "any" or arch or mean or std):
        raise UserError(
            "--cross attacks checkpoints at full strength; leave --smoothed, --compile, --verdict, "
            "--arch, --mean and --std away"
        )
    check_outputs(out, json_file)
    progress = reporter(quiet=quiet)
    loaded, images = model_and_data(
        names[0], data=data, split=split, data_root=data_root, download=download,
        image_size=image_size, samples=samples, arch=arch, mean=mean, std=std, seed=seed,
        say=progress.say,
    )  # fmt: skip
    runtime = Runtime.of(device, precision)
    settings = attack_settings(eps, norm, steps, step_size, restarts)
    specs = attack_specs(attacks, images, settings, loaded, runtime)
    if cross:
        from repsim.checkpoint import load_model
        from repsim.cli.common import check_fit
        from repsim.cross import cross as library_cross

        if len(specs) != 1:
            raise UserError(f"--cross expects one attack; got {', '.join(s.text for s in specs)}")
        others = [load_model(name) for name in names[1:]]
        for other in others:
            check_fit(other, images)
        transfer = library_cross(
            [loaded, *others], images, specs[0], batch_size=batch_size, runtime=runtime, seed=seed,
            progress=progress,
        )  # fmt: skip
        table, summary = transfer.table(), transfer.summary()
    else:
        if smoothed:
            inner = [spec.text for spec in specs if spec.name in INNER]
            if inner:
                raise UserError(
                    f"--smoothed has no inner layer of its own; got {', '.join(inner)}: attack the "
                    "network without --smoothed"
                )
            from repsim.augment import default_augmentation
            from repsim.models import Smoothed

            mirror = default_augmentation(images.name) == "crop-flip"
            net = Smoothed(loaded.model, smoothed, seed, mirror=mirror)
            loaded = replace(loaded, model=net)  # type: ignore[arg-type]
        found = library.evaluate(
            loaded, images, specs, batch_size=batch_size, runtime=runtime, seed=seed,
            verdict=verdict, compile=compile, progress=progress,
        )  # fmt: skip
        table, summary = found.table(), found.summary()
        flags: list[Flag] | None = None
        if masking:
            flags = _flags(found, loaded, images, batch_size, runtime, seed, progress)
            summary["gradient_masking"] = {flag.name: flag.to_json() for flag in flags}
        if smoothed:
            summary["smoothed"] = smoothed
    if out is not None:
        with replacing(out) as beside:
            table.to_csv(beside, index=False)
    write_json(json_file, summary)
    if not quiet and cross:
        _print_transfer(transfer, images.name, split)
    elif not quiet:
        _print(found, summary, flags, split, smoothed)


def _names(networks: Sequence[str], model: str | None, cross: bool) -> list[str]:
    """The networks asked for, in either form.

    Raises:
        UserError: neither or both, or several without --cross.
    """
    from repsim.errors import UserError

    names = [*([model] if model else []), *networks]
    if cross and len(names) < 2:
        raise UserError(
            "--cross expects two or more checkpoints: repsim evaluate --cross a.pt b.pt"
        )
    if not cross and len(names) != 1:
        came = ", ".join(names) or "none"
        raise UserError(
            f"evaluate expects one network, --model FILE; got {came}; several go with --cross"
        )
    return names


def _flags(
    found: Evaluation, loaded: Any, images: Any, batch_size: int, runtime: Any, seed: int,
    progress: Any,
) -> list[Flag]:  # fmt: skip
    """The signs of masked gradients, at the size of the first attack that has one."""
    from repsim.attacks import NORMS
    from repsim.data import default_eps
    from repsim.masking import masking_flags

    sized = [
        s
        for s in found.attacks
        if s.params.get("eps") is not None and not s.is_control and s.norm in NORMS
    ]
    eps, norm = default_eps(images.name), "linf"
    if sized:
        eps, norm = sized[0].params["eps"], sized[0].norm
    return masking_flags(
        loaded, images, eps=eps, norm=norm, batch_size=min(batch_size, 128), runtime=runtime,
        seed=seed, progress=progress,
    )  # fmt: skip


def _print(
    found: Evaluation, summary: dict[str, Any], flags: list[Flag] | None, split: str,
    smoothed: int | None,
) -> None:  # fmt: skip
    from repsim.cli.common import number, percent, print_table
    from repsim.evaluate import unbounded

    rate = {
        name: f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
        for name, value in summary["images_per_second"].items()
    }
    accuracy, interval = summary["robust_accuracy"], summary["robust_accuracy_ci"]
    rows = [["clean", percent(summary["clean_accuracy"], summary["clean_accuracy_ci"]), "",
             rate["clean"]]]  # fmt: skip
    for spec in found.attacks:
        name = spec.condition
        text = spec.text
        if unbounded(spec):
            median = summary["median_norm"][name]
            text += f" (no eps; median {spec.norm} {number(median) or 'none'})"
        rows.append([name, percent(accuracy[name], interval[name]), text, rate[name]])
    if "worst" in accuracy and len([s for s in found.attacks if not s.is_control]) > 1:
        rows.append(["worst", percent(accuracy["worst"], interval["worst"]), "", ""])
    how = f"; mean of {smoothed} random transformations" if smoothed else ""
    print_table(
        f"{found.model} on {len(found.data)} images of {found.data.name}/{split} (95% intervals; "
        f"verdict: {found.verdict} iterate{how})",
        ["condition", "accuracy", "attack", "images/s"], rows,
    )  # fmt: skip
    for name, after in summary.get("robust_accuracy_after", {}).items():
        click.echo(f"{name}: " + ", ".join(f"{k} {percent(v)}" for k, v in after.items()))
    if any(s.params.get("version") == "short" for s in found.attacks):
        click.echo("autoattack,version=short is not the standard AutoAttack: an upper bound of it")
    if flags is None:
        return
    if found.random:
        click.echo("signs of masked gradients are not looked for in networks that draw at random")
    elif raised := [flag for flag in flags if flag.raised]:
        click.echo("signs of masked gradients: explain them before you trust the accuracy")
        for flag in raised:
            click.echo(f"  {flag.name}: {flag.text}")
    elif flags:
        click.echo(f"no sign of masked gradients in {len(flags)} checks")


def _print_transfer(transfer: Transfer, data: str, split: str) -> None:
    from repsim.cli.common import number, percent, print_table

    title = (
        f"{transfer.attack.text} on {transfer.samples} images of {data}/{split}; rows: made on, "
        "columns: shown to"
    )
    cells = [
        (f"{title}; robust accuracy", transfer.accuracy, percent),
        ("CKA(clean, attacked) of the last third of the layers", transfer.last_third, number),
    ]
    for text, matrix, show in cells:
        rows = [
            [made, *(show(value) for value in matrix[i])] for i, made in enumerate(transfer.models)
        ]
        print_table(text, ["", *transfer.models], rows)
