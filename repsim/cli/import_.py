"""`repsim import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from repsim.cli.options import out_option, output_options, overwrite_option

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor, nn

NOISE = 7  # images that show in which order modules run


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", metavar="FILE|NAME", help="The network of the rows, to name them.")
@click.option(
    "--model2",
    metavar="FILE|NAME",
    help="That of the columns. [default: --model, if the file has the same names]",
)
@click.option("--arch", metavar="NAME", help="Architecture, where the weights are a state dict.")
@click.option(
    "--image-size",
    type=click.IntRange(min=4),
    default=32,
    show_default=True,
    metavar="PIXELS",
    help="What a network given by its name takes.",
)
@click.option(
    "--pair",
    metavar="A,B",
    help="Names: CONDITION or MODEL:CONDITION of rows and columns. [default: the file's "
    "models, clean]",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images behind the values, which the file does not say.",
)
@out_option("cka.h5", "The result to write; the figure goes beside it as .png.")
@overwrite_option
@output_options
def import_(
    file: Path, model: str | None, model2: str | None, arch: str | None, image_size: int,
    pair: str | None, samples: int | None, out: Path, overwrite: bool, json_file: Path | None,
    quiet: bool,
) -> None:  # fmt: skip
    """Read a result that torch_cka exported, and put its layer names right.

    FILE is what torch.save wrote of torch_cka's export(). Its rows are in the order in which the
    modules ran, its names are not: with --model each row gets the name that it belongs to.

    \b
    repsim import resnet.pt --model resnet50 --out cka.h5
    repsim import st-at.pt --model st.pt --model2 at.pt --pair st:clean,at:clean
    """
    import json

    from repsim.cli.common import check_outputs, echo_next, number, write_json
    from repsim.errors import UserError
    from repsim.interchange import import_torch_cka, read_torch_cka
    from repsim.plot import panels, save_figure
    from repsim.result import save_result

    figure = out.with_suffix(".png")
    check_outputs(out, figure, json_file)
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} is there; give another name or --overwrite")
    names = read_torch_cka(file).models
    network, images = _network(model, arch, image_size)
    network2, images2 = _network(model2, arch, image_size)
    result = import_torch_cka(
        file, model=network, images=images, model2=network2, images2=images2,
        pair=None if pair is None else _sides(pair, names), samples=samples or 0,
    )  # fmt: skip
    save_result(result, out)
    save_figure(panels([result]), figure)
    summary = json.loads(result.attrs["summary"])
    duplicates = {axis: _duplicates(result, axis) for axis in "xy"}
    write_json(json_file, {**summary, "duplicates": duplicates,
                           "notes": json.loads(result.attrs["notes"])})  # fmt: skip
    if quiet:
        return
    for note in json.loads(result.attrs["notes"]):
        click.echo(note, err=True)
    rows, columns = result["similarity"].shape
    click.echo(
        f"{file}: {rows} × {columns} cells; {len(duplicates['x'])} rows and "
        f"{len(duplicates['y'])} columns equal an earlier one"
    )
    for key in ("alignment_mean", "alignment_last_third", "long_range"):
        if summary.get(key) is not None:
            click.echo(f"{key}: {number(summary[key])}")
    click.echo(f"wrote {out} and {figure}")
    echo_next(f"repsim plot {out} --out heatmap.pdf", f"repsim info {out}")


def _network(
    source: str | None, arch: str | None, image_size: int
) -> tuple[nn.Module | None, Tensor | None]:
    """The network and noise that it takes."""
    import torch

    from repsim.checkpoint import load_model

    if source is None:
        return None, None
    classes = [str(i) for i in range(10)] if arch else None
    loaded = load_model(source, arch=arch, classes=classes, image_size=image_size)
    size = loaded.meta["image_size"]
    noise = torch.rand(NOISE, loaded.meta["channels"], size, size,
                       generator=torch.Generator().manual_seed(0))  # fmt: skip
    return loaded.model, noise


def _sides(pair: str, models: tuple[str, str]) -> tuple[tuple[str, str], tuple[str, str]]:
    from repsim.errors import UserError

    sides = [side.strip() for side in pair.split(",")]
    if len(sides) != 2 or not all(sides):
        raise UserError(
            f"--pair expects two sides, such as clean,adv or st:clean,at:clean; got {pair!r}"
        )
    found = []
    for side, name in zip(sides, models, strict=True):
        model, colon, condition = side.rpartition(":")
        found.append((model if colon else name, condition))
    return found[0], found[1]


def _duplicates(result: xr.Dataset, axis: str) -> dict[str, str]:
    names, originals = result[f"{axis}_layer"].values, result[f"{axis}_duplicate_of"].values
    return {str(n): str(o) for n, o in zip(names, originals, strict=True) if o}
