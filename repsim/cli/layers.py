"""`repsim layers`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from repsim.cli.options import data_options, model_options, output_options


@click.command()
@model_options
@click.option(
    "--layers",
    "patterns",
    multiple=True,
    default=("all",),
    metavar="WHICH",
    help="blocks, leaf, all, or a shell pattern; may be repeated. [default: all]",
)
@data_options("test")
@output_options
def layers(
    model: str, arch: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    patterns: tuple[str, ...], data: str | None, data_root: Path | None, split: str,
    download: bool, image_size: int | None, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """List layers in the order in which they run, with the shape of one image's activations.

    \b
    repsim layers --model ckpt.pt
    repsim layers --model ckpt.pt --layers blocks
    repsim layers --model resnet18 --data digits --layers 'layer3.*.conv2'
    """
    import torch

    from repsim.checkpoint import load_model
    from repsim.cli.common import model_and_data, print_table, write_json
    from repsim.hooks import select_layers

    if data is None and arch is None and Path(model).is_file():
        loaded = load_model(model)  # a checkpoint knows its shape: no images are needed
    else:
        loaded, _ = model_and_data(
            model, data=data, split=split, data_root=data_root, download=download,
            image_size=image_size, samples=2, arch=arch, mean=mean, std=std, seed=0,
            say=lambda text: None,
        )  # fmt: skip
    size = loaded.meta["image_size"]
    images = torch.zeros(2, loaded.meta["channels"], size, size)
    chosen = select_layers(loaded.model, images, list(patterns))
    rows = [
        [layer.name, layer.kind, "×".join(map(str, layer.shape)), f"{math.prod(layer.shape):,}"]
        for layer in chosen.layers
    ]
    write_json(
        json_file,
        {"model": loaded.name,
         "layers": [{"name": x.name, "kind": x.kind, "shape": list(x.shape)}
                    for x in chosen.layers]},
    )  # fmt: skip
    if not quiet:
        if chosen.note:
            click.echo(chosen.note, err=True)
        print_table(f"{loaded.name}: {len(rows)} layers in execution order",
                    ["layer", "kind", "shape", "features"], rows)  # fmt: skip
