"""`repsim extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import (
    DEFAULT_SAMPLES,
    attack_settings,
    attack_size_options,
    data_options,
    model_options,
    out_option,
    output_options,
    overwrite_option,
    run_options,
    samples_option,
)

if TYPE_CHECKING:
    from repsim.extract import Ranks


@click.command()
@model_options
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="ATTACK",
    help="pgd, fgsm, NAME,key=value,..., or file.py:function; may be repeated. [default: pgd]",
)
@attack_size_options
@click.option(
    "--control/--no-control",
    default=True,
    show_default=True,
    help="Also noise of the attack's size.",
)
@click.option(
    "--inputs-from",
    type=click.Path(path_type=Path),
    metavar="STORE",
    help="Run on another store's attacked images instead of attacking.",
)
@click.option(
    "--layers",
    "patterns",
    multiple=True,
    default=("blocks",),
    metavar="WHICH",
    help="blocks, leaf, all, or a shell pattern; may be repeated. [default: blocks]",
)
@click.option(
    "--reduce",
    default="flatten",
    show_default=True,
    metavar="flatten|avgpool|project:K",
    help="What is kept of a layer's activations.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32"]),
    default="auto",
    show_default=True,
    help="auto: float16 where it is enough.",
)
@click.option(
    "--compress",
    type=click.Choice(["none", "lzf", "gzip"]),
    default="none",
    show_default=True,
    help="Without loss; gzip is smaller, lzf faster.",
)
@data_options("test")
@samples_option(DEFAULT_SAMPLES)
@run_options(128)
@out_option("features.h5", "The store to write, or to add a condition to.")
@overwrite_option
@output_options
def extract(**options: Any) -> None:
    """Write the activations of every layer for the same images, clean and attacked.

    An interrupted run continues when the same command is given again; another attack on the
    same model and images is added to the store.

    \b
    repsim extract --model ckpt.pt --attack pgd
    repsim extract --model ckpt.pt --attack pgd --attack pgd,norm=l2,eps=0.5,as=pgd-l2
    torchrun --nproc-per-node 4 -m repsim extract --model ckpt.pt --samples 100000
    """
    from repsim.extract import join

    with join(options.pop("device")) as (ranks, device):
        _extract(ranks, device=device, **options)


def _extract(
    ranks: Ranks,
    model: str, arch: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    attacks: tuple[str, ...], eps: str | None, norm: str | None, steps: str | None,
    step_size: str | None, restarts: str | None, control: bool, inputs_from: Path | None,
    patterns: tuple[str, ...], reduce: str, dtype: str, compress: str,
    data: str | None, data_root: Path | None, split: str, download: bool, image_size: int | None,
    samples: int, device: str, precision: str, batch_size: int, seed: int,
    out: Path, overwrite: bool, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    from repsim import extract as library
    from repsim.cli.common import (
        attack_specs,
        check_outputs,
        echo_next,
        model_and_data,
        percent,
        print_table,
        write_json,
    )
    from repsim.errors import UserError
    from repsim.evaluate import accuracy_interval
    from repsim.progress import reporter
    from repsim.runtime import Runtime
    from repsim.store import open_store

    check_outputs(out, json_file)
    if inputs_from is not None and attacks:
        raise UserError("--inputs-from takes the attacked images of another store; drop --attack")
    progress = reporter(quiet=quiet or not ranks.main)
    loaded, images = model_and_data(
        model, data=data, split=split, data_root=data_root, download=download,
        image_size=image_size, samples=samples, arch=arch, mean=mean, std=std, seed=seed,
        say=progress.say,
    )  # fmt: skip
    settings = attack_settings(eps, norm, steps, step_size, restarts)
    runtime = Runtime.of(device, precision)
    specs = [] if inputs_from else attack_specs(attacks, images, settings, loaded, runtime)
    for spec in specs:
        progress.say(f"attack {spec.condition}: {spec.text}")
    report = library.extract(
        loaded, images, specs, out, layers=list(patterns), reduce=reduce, batch_size=batch_size,
        runtime=runtime, seed=seed,
        control=control, dtype=dtype, compress=compress, inputs_from=inputs_from,
        overwrite=overwrite, progress=progress, ranks=ranks,
    )  # fmt: skip
    if not ranks.main:
        return
    intervals = {
        name: accuracy_interval(found.correct, found.samples)
        for name, found in report.accuracy.items()
    }
    with open_store(out) as store:
        kinds = {name: store.kind(name) for name in store.conditions}
    write_json(json_file, {
        "model": loaded.name,
        "samples": len(images),
        "clean_accuracy": report.accuracy["clean"].value if report.accuracy else None,
        "clean_accuracy_ci": intervals.get("clean"),
        "robust_accuracy": {k: v.value for k, v in report.accuracy.items() if k != "clean"},
        "robust_accuracy_ci": {k: v for k, v in intervals.items() if k != "clean"},
        "layers": report.layers,
        "status": report.status,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 2),
    })  # fmt: skip
    if quiet:
        return
    for note in report.notes:
        click.echo(note, err=True)
    found = report.accuracy
    rows = [
        [name, kind, percent(found[name].value, intervals[name]) if found else "no head"]
        for name, kind in kinds.items()
    ]
    print_table(f"{out}: {report.status}; {loaded.name}, {len(images)} images of "
                f"{images.name}/{split}, {len(report.layers)} layers",
                ["condition", "kind", "accuracy (95% interval)"], rows)  # fmt: skip
    attacked = [name for name, kind in kinds.items() if kind == "attack"]
    if attacked:
        stores = "" if out.name == "features.h5" and out.parent == Path() else f"{out} "
        other = "adv" if len(attacked) == 1 else attacked[-1]
        echo_next(f"repsim cka {stores}--pair clean,{other}")
