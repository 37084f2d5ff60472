"""`repsim evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from repsim.cli.options import (
    DEFAULT_SAMPLES,
    attack_settings,
    attack_size_options,
    data_options,
    model_options,
    output_options,
    run_options,
    samples_option,
)


@click.command()
@model_options
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="ATTACK",
    help="pgd, fgsm, noise, NAME,key=value,..., or file.py:function; may be repeated. "
    "[default: pgd]",
)
@attack_size_options
@click.option(
    "--verdict",
    type=click.Choice(["any", "last"]),
    default="any",
    show_default=True,
    help="An image is lost if any iterate fools the network, or if the last one does.",
)
@data_options("test")
@samples_option(DEFAULT_SAMPLES)
@run_options(256)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE.csv", help="Also write a row an image."
)
@output_options
def evaluate(
    model: str, arch: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    attacks: tuple[str, ...], eps: str | None, norm: str | None, steps: str | None,
    step_size: str | None, restarts: str | None, verdict: str,
    data: str | None, data_root: Path | None, split: str, download: bool, image_size: int | None,
    samples: int, device: str, precision: str, batch_size: int, seed: int,
    out: Path | None, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Clean and robust accuracy with 95% intervals.

    \b
    repsim evaluate --model ckpt.pt --attack pgd
    repsim evaluate --model ckpt.pt --attack fgsm --attack pgd --attack pgd,norm=l2,eps=0.5,as=l2
    """
    from repsim import evaluate as library
    from repsim.cli.common import (
        attack_specs,
        check_outputs,
        model_and_data,
        percent,
        print_table,
        write_json,
    )
    from repsim.files import replacing
    from repsim.progress import reporter
    from repsim.runtime import Runtime

    check_outputs(out, json_file)
    progress = reporter(quiet=quiet)
    loaded, images = model_and_data(
        model, data=data, split=split, data_root=data_root, download=download,
        image_size=image_size, samples=samples, arch=arch, mean=mean, std=std, seed=seed,
        say=progress.say,
    )  # fmt: skip
    specs = attack_specs(attacks, images, attack_settings(eps, norm, steps, step_size, restarts))
    runtime = Runtime.of(device, precision)
    found = library.evaluate(
        loaded, images, specs, batch_size=batch_size, runtime=runtime, seed=seed, verdict=verdict,
        progress=progress,
    )  # fmt: skip
    summary = found.summary()
    if out is not None:
        with replacing(out) as beside:
            found.table().to_csv(beside, index=False)
    write_json(json_file, summary)
    if not quiet:
        rows = [["clean", percent(summary["clean_accuracy"], summary["clean_accuracy_ci"]), "",
                 f"{summary['images_per_second']['clean']:,.0f}"]]  # fmt: skip
        accuracy, interval = summary["robust_accuracy"], summary["robust_accuracy_ci"]
        for spec in specs:
            name = spec.condition
            rate = f"{summary['images_per_second'][name]:,.0f}"
            rows.append([name, percent(accuracy[name], interval[name]), spec.text, rate])
        if len([s for s in specs if not s.is_control]) > 1:
            rows.append(["worst", percent(accuracy["worst"], interval["worst"]), "", ""])
        print_table(
            f"{loaded.name} on {len(images)} images of {images.name}/{split} (95% intervals; "
            f"verdict: {verdict} iterate)",
            ["condition", "accuracy", "attack", "images/s"], rows,
        )  # fmt: skip
