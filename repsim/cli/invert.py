"""`repsim invert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import (
    data_options,
    foreign_options,
    out_option,
    output_options,
    overwrite_option,
)

if TYPE_CHECKING:
    from repsim.inversion import SharedInvariances


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="FILE|NAME",
    help="Checkpoint, foreign state dict (with --arch), or architecture; may be repeated.",
)
@foreign_options
@click.option(
    "--layer",
    "layers",
    multiple=True,
    default=("penultimate",),
    show_default=True,
    metavar="LAYER",
    help="penultimate (the pooled features), logits, or a name that repsim layers lists; once for "
    "all networks or once for each.",
)
@click.option(
    "--start",
    type=click.Choice(["noise", "image", "grey"]),
    default="noise",
    show_default=True,
    help="Begin at uniform noise, at an image of another class, or at grey.",
)
@click.option(
    "--budget",
    type=click.Choice(["laptop", "gpu"]),
    default="laptop",
    show_default=True,
    help="Settings of --samples, --steps, --repetitions, --batch-size that are not given.",
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N",
              help="Images, drawn class-balanced; the same for every --seed.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Gradient steps.")
@click.option("--step-size", type=float, metavar="S",
              help="Length of the first step, l2. [default: 0.04·√pixel values]")  # fmt: skip
@click.option("--repetitions", type=click.IntRange(min=1), metavar="K",
              help="Inversions of each network from other starts.")  # fmt: skip
@click.option(
    "--estimator",
    type=click.Choice(["debiased", "biased"]),
    default="debiased",
    show_default=True,
    help="Of CKA; biased is that of the papers.",
)
@click.option(
    "--groups",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Jackknife groups behind the intervals; 1 for none.",
)
@click.option("--keep-images", is_flag=True,
              help="Also write the first repetition's starts and inversions.")  # fmt: skip
@data_options("test")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bf16"]),
    default="auto",
    show_default=True,
    help="Of the steps; what is measured is always in float32.",
)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Images at once.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the starts.")
@out_option("stir.h5", "The result to write; the figure goes beside it as .png.")
@overwrite_option
@output_options
def invert(
    models: tuple[str, ...], arch: str | None, mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None, layers: tuple[str, ...], start: str, budget: str,
    samples: int | None, steps: int | None, step_size: float | None, repetitions: int | None,
    estimator: str, groups: int, keep_images: bool, data: str | None, data_root: Path | None,
    split: str, download: bool, image_size: int | None, device: str, precision: str,
    batch_size: int | None, seed: int, out: Path, overwrite: bool, json_file: Path | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Images that a network represents alike, and which other networks do so too (STIR).

    For every image another one is searched that the network gives the same representation. With
    several networks, each looks at the images inverted from each: STIR(row | column) is 1 where
    the row's network has every invariance of the column's.

    \b
    repsim invert --model ckpt.pt
    repsim invert --model st.pt --model at.pt --start image
    repsim invert --model st.pt --model at.pt --budget gpu --out stir.h5
    """
    import torch

    from repsim.cli.common import check_outputs, echo_next, write_json
    from repsim.cli.live import load_all
    from repsim.data import to_float
    from repsim.errors import UserError
    from repsim.inversion.budgets import BUDGETS
    from repsim.inversion.features import LOGITS
    from repsim.inversion.figure import inversion_figure
    from repsim.inversion.invert import default_step_size
    from repsim.inversion.result import summary, to_dataset
    from repsim.inversion.shared import shared_invariances
    from repsim.plot import save_figure
    from repsim.progress import reporter
    from repsim.result import save_result
    from repsim.runtime import Runtime

    figure = out.with_suffix(".png")
    _check_out(out, figure, overwrite)
    check_outputs(out, figure, json_file)
    preset = BUDGETS[budget]
    progress = reporter(quiet=quiet)
    networks, images = load_all(
        models, arch=arch, mean=mean, std=std, seed=seed, data=data,
        samples=samples or preset.samples, say=progress.say, split=split, data_root=data_root,
        download=download, image_size=image_size,
    )  # fmt: skip
    if len(images) < (least := 2 if estimator == "biased" else 4):
        raise UserError(
            f"--samples expects at least {least} images for {estimator} CKA; got {len(images)}"
        )
    runtime = Runtime.of(device, precision)
    for network in networks:
        if LOGITS in layers:
            network.require_head("an inversion of logits")
        runtime.place(network.model)
    pixels = runtime.images(to_float(images.images))
    settings: dict[str, Any] = {
        "start": start,
        "steps": steps or preset.steps,
        "step_size": default_step_size(pixels) if step_size is None else step_size,
        "repetitions": repetitions or preset.repetitions,
        "batch_size": batch_size or preset.batch_size,
        "estimator": estimator,
        "groups": groups,
        "seed": seed,
    }
    if not quiet:
        click.echo(
            f"budget {budget}: {len(images)} images of {images.name}/{split}, each inverted from "
            f"{start} {settings['repetitions']} time(s) for each network, "
            f"{settings['steps']} steps from {settings['step_size']:.3g} down to 0 in batches of "
            f"{settings['batch_size']} ({runtime.device}, {runtime.precision})",
            err=True,
        )
    found = shared_invariances(
        {network.name: network.model for network in networks}, pixels,
        layers=layers[0] if len(layers) == 1 else layers, labels=images.labels, ids=images.keys,
        classifiers=[network.name for network in networks if network.meta["head"]],
        precision=torch.bfloat16 if runtime.precision == "bf16" else None, progress=progress,
        **settings,
    )  # fmt: skip
    labels = images.labels.numpy()
    result = to_dataset(found, labels, {
        "settings": {**settings, "layers": found.layers, "precision": runtime.precision},
        "networks": {
            network.name: {"sha256": network.sha256, **{
                key: network.meta.get(key) for key in ("arch", "scheme", "scenario")
            }}
            for network in networks
        },
        "data": {"name": images.name, "split": split, "fingerprint": images.fingerprint,
                 "samples": len(images)},
    }).assign_coords(sample_id=("sample", images.ids))  # fmt: skip
    if keep_images:
        shape = ("channel", "height", "width")
        result["started"] = (("sample", *shape), found.begun.contiguous().numpy())
        result["inverted"] = (("y", "sample", *shape), found.inverted.contiguous().numpy())
    save_result(result, out)
    save_figure(inversion_figure(found, pixels), figure)
    numbers = summary(found, labels)
    write_json(json_file, {**numbers, "settings": settings})
    if not quiet:
        for note in found.notes:
            click.echo(note, err=True)
        _print(found, numbers)
        click.echo(f"wrote {out} and {figure}")
        echo_next(f"repsim info {out}", *(
            [] if len(networks) > 1 else
            [f"repsim invert --model {models[0]} --model OTHER.pt --out shared.h5"]
        ))  # fmt: skip


def _check_out(out: Path, figure: Path, overwrite: bool) -> None:
    """Refuse an output that would go over something, before any work.

    Raises:
        UserError: the name of the figure, or a file that is there without --overwrite.
    """
    from repsim.errors import UserError

    if out == figure:
        raise UserError(
            f"--out {out} expects a name for the result, such as {out.stem}.h5; the figure goes "
            f"beside it as {figure.name}"
        )
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} is there; give another name or --overwrite")


def _print(found: SharedInvariances, numbers: dict[str, Any]) -> None:
    from repsim.cli.common import number, percent, print_table

    distance, pixels = numbers["distance"], numbers["pixels"]
    rows = []
    for j, name in enumerate(found.models):
        accuracy = numbers["accuracy"].get(name)
        kept = numbers["kept"][j][j]
        rows.append([
            name,
            found.layers[j],
            number(numbers["start_distance"]["median"][j]),
            f"{distance['median'][j]:.4f} "
            "[{:.4f}, {:.4f}]".format(*distance["from_10_to_90%"][j]),
            number(pixels["median"][j]),
            "" if kept is None else percent(kept),
            "" if accuracy is None else f"{percent(accuracy['clean_accuracy'])} → "
            + percent(accuracy["inverted_accuracy"][j]),
        ])  # fmt: skip
    print_table(
        "inversions: relative distance of representations, median [10%, 90%] of images",
        ["network", "layer", "at the start", "reached", "pixels, rms", "prediction kept",
         "accuracy"],
        rows,
    )  # fmt: skip
    how = f"{found.estimator} linear CKA, {numbers['samples']} images"
    matrices = {
        "stir": "STIR, row given column: what the row's network sees in images inverted from the "
        f"column's ({how}, 95% intervals)",
        "noise": "the same of noise that the column's network notices as little",
        "inverted_cka": "CKA of row with column on the images inverted from the column's",
        "cka": "CKA of row with column on the original images",
    }
    shown = list(matrices) if len(found.models) > 1 else ["stir", "noise"]
    for key in shown:
        value, ends = numbers[key], numbers.get(f"{key}_ci")
        print_table(matrices[key], ["", *found.models], [
            [name, *(number(cell, ends[i][j] if ends else None)
                     for j, cell in enumerate(value[i]))]
            for i, name in enumerate(found.models)
        ])  # fmt: skip
    begun = ", ".join(f"{name} {number(numbers['start'][i][i])}"
                      for i, name in enumerate(found.models))  # fmt: skip
    click.echo(f"CKA of the originals with the images started from: {begun}")
    if (spread := numbers.get("stir_spread")) is not None:
        largest = max(max(row) for row in spread)
        click.echo(
            f"STIR over {numbers['repetitions']} repetitions: standard deviation at most "
            f"{largest:.3f}"
        )
