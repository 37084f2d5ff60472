"""What several commands do alike around their library call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from repsim.attack_files import bind
from repsim.attacks import AttackSpec, parse_attacks
from repsim.checkpoint import LoadedModel, load_model
from repsim.data import ImageData, default_eps, draw, load_data
from repsim.errors import UserError
from repsim.files import check_writable, replacing
from repsim.runtime import Runtime


def model_and_data(
    model: str,
    *,
    data: str | None,
    split: str,
    data_root: Path | None,
    download: bool,
    image_size: int | None,
    samples: int | None,
    arch: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int,
    say: Any,
) -> tuple[LoadedModel, ImageData]:
    """The network and the drawn images that it fits.

    Raises:
        UserError: no data set known or found, or images that the network cannot take.
    """
    loaded = None
    if data is None:
        loaded = load_model(model, arch=arch)
        data = loaded.data
        if data is None:
            raise UserError(f"--model {model} does not say what it was trained on; give --data")
    elif Path(model).is_file() and arch is None:
        loaded = load_model(model)
    size = image_size or (loaded.meta["image_size"] if loaded else None)
    images = load_data(data, split, root=data_root, download=download, image_size=size)
    if loaded is None:
        loaded = load_model(
            model, arch=arch, classes=images.classes, channels=images.images.shape[1],
            image_size=images.images.shape[-1], mean=mean, std=std, seed=seed,
        )  # fmt: skip
        if loaded.sha256.startswith("untrained"):
            say(f"{model} is an architecture: an untrained network of seed {seed}")
    elif mean or std:
        raise UserError(f"--mean and --std are for foreign weights; {model} brings its own")
    check_fit(loaded, images)
    if samples is not None:
        if samples > len(images):
            say(f"{images.name}/{split} has {len(images)} images; all of them are used")
        images = draw(images, samples)
    return loaded, images


def check_fit(loaded: LoadedModel, images: ImageData) -> None:
    """Refuse images that a network cannot take, or whose classes are others.

    Raises:
        UserError: another shape, number or order of classes.
    """
    meta = loaded.meta
    wanted = (meta["channels"], meta["image_size"], meta["image_size"])
    came = tuple(images.images.shape[1:])
    if came != wanted:
        raise UserError(
            f"{loaded.name} expects images of shape {wanted}; {images.name} has {came}; try "
            f"--image-size {meta['image_size']} or another --data"
        )
    if len(meta["classes"]) != len(images.classes):
        raise UserError(
            f"{loaded.name} expects {len(meta['classes'])} classes; {images.name} has "
            f"{len(images.classes)}; try another --data"
        )
    known, here = list(meta["classes"]), list(images.classes)
    # Classes that are only numbered say nothing about what they are.
    if known != here and not any(
        names == [str(i) for i in range(len(names))] for names in (known, here)
    ):
        raise UserError(
            f"{loaded.name} expects the classes {_few(known)}; {images.name} has {_few(here)}, in "
            "this order; labels would mean other classes; try another --data"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def attack_specs(
    texts: Sequence[str],
    images: ImageData,
    settings: dict[str, str],
    loaded: LoadedModel,
    runtime: Runtime,
) -> list[AttackSpec]:
    """The attacks asked for, `pgd` if none, with the data set's eps unless given.

    The files that they name are read.
    """
    eps = default_eps(images.name)
    return [
        bind(spec, loaded, runtime)
        for text in texts or ["pgd"]
        for spec in parse_attacks(text, eps=eps, defaults=settings)
    ]


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """The numbers as a file, if one was asked for."""
    if path is not None:
        with replacing(path) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n")


def check_outputs(*paths: Path | None) -> None:
    """Refuse output files that cannot be written, before any work."""
    for path in paths:
        if path is not None:
            check_writable(path)


def percent(value: float, interval: Sequence[float] | None = None) -> str:
    """`93.4% [91.8, 94.8]`."""
    text = f"{100 * value:.1f}%"
    if interval is None:
        return text
    return f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def number(value: float | None, interval: Sequence[float] | None = None) -> str:
    """`0.534 [0.512, 0.556]`; nothing for None."""
    if value is None:
        return ""
    if interval is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def mean_number(found: Mapping[str, Any], key: str) -> str:
    """A mean of `repsim.compare.AllPairs`; `(1 of 11)` where the other values are nan."""
    text = number(found.get(key), found.get(f"{key}_ci"))
    some = found.get(f"{key}_of")
    return f"{text} ({some[0]} of {some[1]})".strip() if some else text


def plus_minus(value: float | None, interval: Sequence[float] | None = None) -> str:
    """`0.53 ± 0.02`, for tables that must fit 80 columns; nothing for None."""
    if value is None or interval is None:
        return "" if value is None else f"{value:.2f}"
    return f"{value:.2f} ± {(interval[1] - interval[0]) / 2:.2f}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, aligned, that fits a terminal and a log file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    if title:
        console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def echo_next(*lines: str) -> None:
    """What a user would type now."""
    click.echo("next:")
    for line in lines:
        click.echo(f"  {line}")
