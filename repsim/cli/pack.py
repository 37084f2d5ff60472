"""`repsim pack`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--compress",
    type=click.Choice(["none", "lzf", "gzip"]),
    default="none",
    show_default=True,
    help="Without loss; gzip is smaller, lzf faster.",
)
@click.option("--quiet", is_flag=True, help="No progress, no line.")
def pack(store: Path, compress: str, quiet: bool) -> None:
    """Make one file of a store that several processes wrote, or compress a store.

    \b
    repsim pack features.h5
    repsim pack features.h5 --compress gzip
    """
    from repsim.extract import pack as library
    from repsim.progress import reporter
    from repsim.store import show_bytes

    changed = library(store, compress=compress, progress=reporter(quiet=quiet))
    if not quiet:
        size = show_bytes(store.stat().st_size)
        click.echo(f"{store}: {'packed' if changed else 'is one such file already'}; {size}")
