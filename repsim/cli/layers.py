"""`repsim layers`."""

from __future__ import annotations

import math
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import data_options, model_options, output_options

if TYPE_CHECKING:
    from repsim.hooks.doctor import Checkup, Finding

CHECKED = 7  # images of a check
MOST = 8  # findings of a kind in the table; --json holds all


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
@click.option(
    "--check", is_flag=True,
    help="Run one batch and report what hooks see wrongly or not at all: modules that never run, "
    "outputs changed in place, duplicates, ...",
)  # fmt: skip
@data_options("test")
@output_options
def layers(
    model: str, arch: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    patterns: tuple[str, ...], check: bool, data: str | None, data_root: Path | None, split: str,
    download: bool, image_size: int | None, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """List layers in the order in which they run, with the shape of one image's activations.

    \b
    repsim layers --model ckpt.pt
    repsim layers --model ckpt.pt --layers blocks
    repsim layers --model resnet18 --data digits --layers 'layer3.*.conv2'
    repsim layers --model torchvision/resnet50 --data cifar10 --check
    """
    import torch

    from repsim.checkpoint import load_model
    from repsim.cli.common import model_and_data, print_table, write_json
    from repsim.data import to_float
    from repsim.hooks import select_layers
    from repsim.hooks.doctor import ADVICE, examine

    real = None
    if data is None and arch is None and Path(model).is_file():
        loaded = load_model(model)  # a checkpoint knows its shape: no images are needed
    else:
        loaded, found = model_and_data(
            model, data=data, split=split, data_root=data_root, download=download,
            image_size=image_size, samples=CHECKED if check else 2, arch=arch, mean=mean, std=std,
            seed=0, say=lambda text: None,
        )  # fmt: skip
        real = to_float(found.images)
    size = loaded.meta["image_size"]
    shape = (CHECKED, loaded.meta["channels"], size, size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) if real is None else real
    checkup = examine(loaded.model, images) if check else None
    chosen = select_layers(loaded.model, images, list(patterns))
    content: dict[str, Any] = {
        "model": loaded.name,
        "layers": [{"name": x.name, "kind": x.kind, "shape": list(x.shape)}
                   for x in chosen.layers],
    }  # fmt: skip
    findings: list[Finding] = []
    if checkup is not None:
        findings = _of_layers(checkup, {layer.name for layer in chosen.layers}, patterns)
        content["check"] = {
            "images": "noise" if real is None else "data",
            "notes": checkup.notes,
            "findings": [asdict(one) for one in findings],
            "advice": {kind: text for kind, text in ADVICE.items()
                       if any(one.kind == kind for one in findings)},
        }  # fmt: skip
    write_json(json_file, content)
    if quiet:
        return
    if chosen.note:
        click.echo(chosen.note, err=True)
    if checkup is not None:
        _print_check(loaded.name, checkup, findings, "noise" if real is None else "data")
        return
    rows = [
        [layer.name, layer.kind, "×".join(map(str, layer.shape)), f"{math.prod(layer.shape):,}"]
        for layer in chosen.layers
    ]
    print_table(f"{loaded.name}: {len(rows)} layers in execution order",
                ["layer", "kind", "shape", "features"], rows)  # fmt: skip


def _of_layers(checkup: Checkup, chosen: set[str], patterns: tuple[str, ...]) -> list[Finding]:
    """Findings about the chosen layers' modules, and about modules that a pattern names."""
    if "all" in patterns:
        return checkup.findings
    modules = {name.partition("@")[0] for name in chosen}
    return [
        one
        for one in checkup.findings
        if one.layer.partition("@")[0] in modules
        or any(fnmatchcase(one.layer, pattern) for pattern in patterns)
    ]


def _print_check(name: str, checkup: Checkup, findings: list[Finding], images: str) -> None:
    """A table of each kind under its line of advice, at most `MOST` rows."""
    from repsim.hooks.doctor import ADVICE

    for note in checkup.notes:
        click.echo(note, err=True)
    click.echo(
        f"{name}: {checkup.modules} modules, {len(checkup.layers)} layers, {CHECKED} images of "
        f"{images}" + ("" if findings else ": nothing found")
    )
    equal = {one.layer for one in findings if one.kind == "duplicate" and "memory" in one.detail}
    for kind in ADVICE:
        of_kind = [one for one in findings if one.kind == kind]
        if not of_kind:
            continue
        click.echo(f"\n{kind} ({len(of_kind)}): {ADVICE[kind]}")
        # A duplicate in the same memory has been listed as such.
        rows = [one for one in of_kind if kind != "view" or one.layer not in equal]
        width = max((len(one.layer) for one in rows[:MOST]), default=0)
        for one in rows[:MOST]:
            click.echo(f"  {one.layer:{width}}  {one.detail}")
        if len(rows) > MOST:
            click.echo(f"  ... {len(rows) - MOST} more; --json has all")
        if listed := [one.layer for one in of_kind if one not in rows]:
            few = ", ".join(listed[:MOST]) + (", ..." if len(listed) > MOST else "")
            click.echo(f"  among the duplicates above: {few}")
