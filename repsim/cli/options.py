"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

DEFAULT_SAMPLES = 1000


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Callback of an option: `0.49,0.48,0.45` -> a tuple of numbers."""
    try:
        return None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"expected numbers joined by commas; got {value!r}") from None


model_option = click.option(
    "--model", required=True, metavar="FILE|NAME",
    help="Checkpoint, foreign state dict (with --arch), or architecture.",
)  # fmt: skip
foreign_options = stack(
    click.option("--arch", metavar="NAME", help="Architecture of a foreign state dict."),
    click.option("--mean", callback=numbers, metavar="N,N,N",
                 help="Normalisation of a foreign network: mean."),
    click.option("--std", callback=numbers, metavar="N,N,N",
                 help="Normalisation of a foreign network: deviation."),
)  # fmt: skip
model_options = stack(model_option, foreign_options)


def data_options(split: str) -> Callable[[Command], Command]:
    """Where the images come from."""
    return stack(
        click.option("--data", metavar="NAME|FOLDER",
                     help="Data set: a name, a folder, or file.py:function."
                     + ("" if split == "train" else " [default: the checkpoint's own]")),
        click.option("--data-root", type=click.Path(path_type=Path), metavar="FOLDER",
                     help="Where data sets lie. [default: $REPSIM_DATA, else ./data]"),
        click.option("--split", default=split, show_default=True, metavar="train|test",
                     help="Split of the data set."),
        click.option("--download", is_flag=True, help="Fetch the data set if it is not there."),
        click.option("--image-size", type=click.IntRange(min=4), metavar="PIXELS",
                     help="Bring images to this size."),
    )  # fmt: skip


def samples_option(default: int | None) -> Callable[[Command], Command]:
    """How many images."""
    return click.option(
        "--samples", type=int, default=default, show_default=default or "all", metavar="N",
        help="Images, drawn class-balanced; the same for every --seed.",
    )  # fmt: skip


attack_size_options = stack(
    click.option("--eps", metavar="EPS", help="Size, e.g. 8/255. [default: the data set's]"),
    click.option("--norm", type=click.Choice(["linf", "l2", "l1"]), help="Norm. [default: linf]"),
    click.option("--steps", metavar="N", help="Steps of iterative attacks."),
    click.option("--step-size", metavar="S", help="Step size, e.g. 2/255 or 1.25eps."),
    click.option("--restarts", metavar="N", help="Restarts of randomly started attacks."),
)


def attack_settings(
    eps: str | None,
    norm: str | None,
    steps: str | None,
    step_size: str | None,
    restarts: str | None,
) -> dict[str, str]:
    """The given ones among the attack options, as `parse_attack` takes them."""
    settings = {"eps": eps, "norm": norm, "steps": steps, "step_size": step_size,
                "restarts": restarts}  # fmt: skip
    return {name: value for name, value in settings.items() if value is not None}


def run_options(batch_size: int | None) -> Callable[[Command], Command]:
    """How networks are run."""
    return stack(
        click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda"),
        click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]), default="auto",
                     show_default=True),
        click.option("--batch-size", type=click.IntRange(min=1), default=batch_size,
                     show_default=True if batch_size else "the scheme's"),
        click.option("--seed", type=int, default=0, show_default=True),
    )  # fmt: skip


output_options = stack(
    click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE",
                 help="Also write the numbers as JSON."),
    click.option("--quiet", is_flag=True, help="No progress, no table."),
)  # fmt: skip
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")


def out_option(default: str | None, what: str) -> Callable[[Command], Command]:
    """The output file."""
    # An explicit default of None would count as given.
    default_or_required: dict[str, Any] = (
        {"required": True} if default is None else {"default": default, "show_default": True}
    )
    return click.option(
        "--out", type=click.Path(path_type=Path), metavar="FILE", help=what, **default_or_required
    )
