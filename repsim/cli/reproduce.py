"""`repsim reproduce`."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import output_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from repsim.study.api import Prepared
    from repsim.study.study import Machine

LAUNCHERS = ("local", "slurm")


@click.command()
@click.argument("study", type=click.Choice(["universal"]))
@click.option(
    "--preset",
    default="demo",
    show_default=True,
    metavar="NAME|FILE.toml",
    help="demo: digits, minutes on two cores; small: CIFAR-10, 10,000 images, overnight on two "
    "cores, minutes from checkpoints; gpu: CIFAR-10, all images, hours of one GPU; paper: its "
    "protocol, weeks of one GPU; or your own.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where all is kept.  [default: universal-PRESET]",
)
@click.option("--schemes", metavar="NAME,NAME", help="Only these of the preset's, e.g. sl,cl.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Trainings of each network.")
@click.option("--data", metavar="NAME|FOLDER", help="Another data set than the preset's.")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where data sets lie. [default: $REPSIM_DATA, else ./data]",
)
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Your own checkpoints: [[network]] with name, checkpoint, scheme, scenario, and "
    "where they matter seed, eps, arch.",
)
@click.option(
    "--checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Take a network from here where its settings are those asked for; may be "
    "repeated.  [default: checkpoints]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another setting of the preset, e.g. compare.samples=1000; may be repeated.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the stages with their time, from measured steps, and size; and end.",
)
@click.option(
    "--measure-again", is_flag=True, help="With --dry-run: measure the kept steps once more."
)
@click.option(
    "--stop-after",
    metavar="STAGE",
    help="End after this stage, e.g. train, compare, probe-sl-at-0.  [default: report]",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stages at a time.  [default: the processor's cores, at most 8; 1 with a GPU]",
)
@click.option(
    "--launcher",
    type=click.Choice(LAUNCHERS),
    default="local",
    show_default=True,
    help="slurm: submit the stages as jobs (needs the extra slurm).",
)
@click.option(
    "--slurm",
    "slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="Parameter of the jobs, e.g. partition=gpu, time=240, gpus_per_node=4, "
    "cpus_per_task=8, mem_gb=64; may be repeated.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="That share a training or the comparison, by torchrun; needs --launcher slurm.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bf16"]),
    help="[default: the preset's, which is auto where it says none]",
)
@output_options  # fmt: skip
def reproduce(
    study: str, preset: str, out: Path | None, schemes: str | None, seeds: int | None,
    data: str | None, data_root: Path | None, download: bool, models: Path | None,
    checkpoints: tuple[Path, ...], settings: tuple[str, ...], dry_run: bool,
    measure_again: bool, stop_after: str | None, jobs: int | None, launcher: str,
    slurm: tuple[str, ...], processes: int, device: str, precision: str | None,
    json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """A whole study: trains, evaluates, compares, probes, computes the findings, writes a report.

    Every stage's result is kept: a second run does only what changed, a killed one continues.

    \b
    repsim reproduce universal
    repsim reproduce universal --preset small --dry-run
    repsim reproduce universal --preset small --seeds 1 --schemes sl,cl
    repsim reproduce universal --preset small --models mine.toml --out mine
    repsim reproduce universal --preset gpu --launcher slurm --slurm partition=gpu --slurm time=120
    """
    from repsim.cli.common import check_outputs, write_json
    from repsim.errors import UserError
    from repsim.progress import Silent, reporter
    from repsim.study.api import claimed, prepare, run
    from repsim.study.command import Wish
    from repsim.study.study import Machine

    check_outputs(json_file)
    if launcher == "local" and (slurm or processes > 1):
        raise UserError("--slurm and --processes are for --launcher slurm; got --launcher local")
    for folder in checkpoints:
        if not folder.is_dir():
            raise UserError(f"--checkpoints expects a folder; there is no folder {folder}")
    if measure_again and not dry_run:
        raise UserError("--measure-again is for --dry-run; add it, or leave --measure-again out")
    wish = Wish(
        preset, out, tuple(part.strip() for part in schemes.split(",")) if schemes else (), seeds,
        data, models, settings, precision,
    )  # fmt: skip
    machine = Machine(
        device, data_root, download, tuple(checkpoints) or _ready_folders(), processes
    )
    progress = Silent() if quiet else reporter()
    progress.row = lambda row: None  # type: ignore[method-assign]
    prepared = prepare(wish, machine, stop_after=stop_after, progress=progress)

    def tell(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    folder = prepared.study.folder
    for note in prepared.notes:
        tell(note)
    if dry_run:
        write_json(json_file, _estimate(prepared, _jobs(jobs, machine), measure_again, tell, quiet))
        return
    if launcher == "slurm":
        from repsim.study.cluster import submit

        with claimed(folder):
            submitted = submit(prepared, slurm)
        write_json(json_file, {"folder": folder.name, "jobs": submitted})
        if not quiet:
            click.echo(f"{len(submitted)} jobs submitted; their output: {folder / 'jobs'}")
        return
    to_do = prepared.to_do()
    tell(f"{len(prepared.names)} stages, {len(to_do)} to do, in {_shown(folder)}")
    with claimed(folder):
        run(prepared, jobs=_jobs(jobs, machine), tell=tell)
    write_json(json_file, _numbers(prepared))
    if not quiet:
        _finish(prepared)


def _ready_folders() -> tuple[Path, ...]:
    """The folder of trained networks, here or beside the installed package."""
    import repsim

    found = [Path("checkpoints"), Path(repsim.__file__).parent.parent / "checkpoints"]
    return tuple(dict.fromkeys(path.resolve() for path in found if path.is_dir()))


def _jobs(jobs: int | None, machine: Machine) -> int:
    from repsim.runtime import Runtime
    from repsim.study.study import cores

    if jobs is not None:
        return jobs
    return min(cores(), 8) if Runtime.of(machine.device).device == "cpu" else 1


def _estimate(
    prepared: Prepared, jobs: int, again: bool, tell: Callable[[str], None], quiet: bool
) -> dict[str, Any]:
    """The stages with their time and size, printed; the same as plain values."""
    from repsim.cli.common import print_table
    from repsim.store import show_bytes
    from repsim.study.estimate import estimate, show_time

    found = estimate(prepared, jobs=jobs, again=again, tell=tell)
    if not quiet:
        rows = [
            [row["name"], row["status"], show_time(row["seconds"]), show_bytes(row["bytes"]),
             row["about"]]
            for row in found.rows
        ]  # fmt: skip
        print_table("", ["stage", "", "time", "size", ""], rows)
        at_once = f" with {jobs} at a time" if jobs > 1 else ""
        click.echo(
            f"{sum(row['status'] != 'done' for row in found.rows)} of {len(found.rows)} stages to "
            f"do: {show_time(found.seconds)}{at_once}; {show_bytes(found.bytes)} on the disk"
        )
    return {"stages": found.rows, "seconds": found.seconds, "bytes": found.bytes, "jobs": jobs,
            "notes": prepared.notes}  # fmt: skip


def _shown(path: Path) -> str:
    """A path as short as it can be typed here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _numbers(prepared: Prepared) -> dict[str, Any]:
    """What the study found, where that stage is done under these settings."""
    import json

    folder = prepared.study.folder
    found = None
    if prepared.done("findings"):
        found = json.loads((folder / "findings.json").read_text("utf-8"))
    return {"folder": folder.name, "findings": found}


def _finish(prepared: Prepared) -> None:
    from repsim.cli.common import echo_next

    folder = prepared.study.folder
    found = _numbers(prepared)["findings"]
    if found is not None:
        width = shutil.get_terminal_size((100, 24)).columns
        for one in found:
            click.echo(f"{one['key']}. {one['verdict'].upper()}: {one['claim']}")
            click.echo(textwrap.fill(one["reason"], width, initial_indent="   ",
                                     subsequent_indent="   "))  # fmt: skip
    elif (folder / "findings.json").is_file():
        click.echo("findings: of other settings, run without --stop-after")
    if prepared.done("report"):
        click.echo(f"report: {_shown(folder / 'report.html')}")
        echo_next(f"repsim plot {_shown(folder)}/similarity.h5 --out all.pdf",
                  f"repsim info {_shown(folder)}/similarity.h5")  # fmt: skip
