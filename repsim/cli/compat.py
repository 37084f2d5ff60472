"""`repsim compat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import (
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
    import numpy as np
    from torch import Tensor

    from repsim.checkpoint import LoadedModel
    from repsim.data import ImageData
    from repsim.interchange import Compat
    from repsim.progress import Progress
    from repsim.runtime import Runtime

MOST = 5  # changed layers in the table; --json has all


@click.command()
@model_options
@click.option("--model2", metavar="FILE|NAME", help="The columns' network. [default: --model]")
@click.option(
    "--attack",
    metavar="ATTACK",
    help="Show the second network images attacked on itself. [default: clean images]",
)
@attack_size_options
@click.option(
    "--layers",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Modules to hook, by name; may be repeated. [default: all, the network itself included]",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE.pt",
    help="Also say how far an exported result of torch_cka is from these values.",
)
@data_options("test")
@samples_option(512)
@run_options(128)
@out_option("torch_cka.h5", "The result to write; the correct one goes beside it as *-correct.h5.")
@overwrite_option
@output_options
def compat(
    model: str, arch: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None,
    model2: str | None, attack: str | None, eps: str | None, norm: str | None, steps: str | None,
    step_size: str | None, restarts: str | None, patterns: tuple[str, ...], against: Path | None,
    data: str | None, data_root: Path | None, split: str, download: bool, image_size: int | None,
    samples: int, device: str, precision: str, batch_size: int, seed: int, out: Path,
    overwrite: bool, json_file: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Compute what torch_cka computes, and say how far it is from the correct values.

    \b
    repsim compat --model st.pt --model2 at.pt
    repsim compat --model st.pt --attack pgd --against published.pt
    """
    from repsim.cli.common import (
        attack_specs,
        check_outputs,
        echo_next,
        model_and_data,
        write_json,
    )
    from repsim.errors import UserError
    from repsim.interchange import torch_cka_values
    from repsim.progress import reporter
    from repsim.result import save_result
    from repsim.runtime import Runtime

    correct = out.with_name(f"{out.stem}-correct{out.suffix}")
    check_outputs(out, correct, json_file)
    for path in (out, correct):
        if path.exists() and not overwrite:
            raise UserError(f"--out {path} is there; give another name or --overwrite")
    if precision == "bf16":
        raise UserError("--precision expects float32 here, in which torch_cka computes; got bf16")
    settings = attack_settings(eps, norm, steps, step_size, restarts)
    if settings and attack is None:
        raise UserError(f"--{next(iter(settings)).replace('_', '-')} belongs to --attack; give one")
    runtime, progress = Runtime.of(device, "float32"), reporter(quiet=quiet)

    def load(source: str) -> tuple[LoadedModel, ImageData]:
        loaded, images = model_and_data(
            source, data=data, split=split, data_root=data_root, download=download,
            image_size=image_size, samples=samples, arch=arch, mean=mean, std=std, seed=seed,
            say=lambda text: click.echo(text, err=True),
        )  # fmt: skip
        loaded.model.to(runtime.device)  # its layout stays: another one rounds otherwise
        return loaded, images

    one, images = load(model)
    two, images2 = load(model2 or model)  # a second copy: torch_cka mixes up one object as both
    _same_images(images, images2)
    batches, batches2, condition = _batches(images, batch_size), None, "clean"
    provenance: dict[str, Any] = {
        "models": [{"name": x.name, "sha256": x.sha256} for x in (one, two)],
        "data": {"name": images.name, "split": split, "fingerprint": images.fingerprint,
                 "samples": len(images)},
        "attack": None,
    }  # fmt: skip
    if attack is not None:
        (spec,) = attack_specs([attack], images2, settings, two, runtime)
        condition, provenance["attack"] = spec.condition, {**spec.to_json(), "seed": seed}
        batches2 = _attacked(two, images2, spec, batch_size, runtime, seed, progress)
    names = (one.name, two.name)
    if names[0] == names[1] and condition == "clean" and model2 is not None and model2 != model:
        names = (f"{names[0]} (x)", f"{names[1]} (y)")
    found = torch_cka_values(
        one.model, two.model, batches, batches2,
        layers=_modules(one, patterns), layers2=_modules(two, patterns),
        pair=((names[0], "clean"), (names[1], condition)), provenance=provenance,
        progress=progress,
    )  # fmt: skip
    summary = {**found.summary(), "batch_size": batch_size}
    if against is not None:
        summary["against"] = _against(found, against)
    save_result(found.result, out)
    save_result(found.correct, correct)
    write_json(json_file, summary)
    if not quiet:
        for note in found.notes:
            click.echo(note, err=True)
        _print(found, summary)
        click.echo(f"wrote {out} and {correct}")
        echo_next(f"repsim plot {out} {correct} --kind difference --out difference.png")


def _same_images(a: ImageData, b: ImageData) -> None:
    from repsim.errors import UserError

    if a.name != b.name or len(a) != len(b):
        raise UserError(
            f"both networks expect the same images; got {len(a)} of {a.name} and {len(b)} of "
            f"{b.name}; give --data"
        )


def _batches(images: ImageData, size: int) -> list[Tensor]:
    from repsim.data import to_float

    return list(to_float(images.images).split(size))


def _attacked(
    network: LoadedModel, images: ImageData, spec: Any, size: int, runtime: Runtime, seed: int,
    progress: Progress,
) -> list[Tensor]:  # fmt: skip
    """The images attacked on a network, in batches of the same size and order."""
    from repsim.attacks import inside, run_attack
    from repsim.data import batches

    found = []
    with progress.task(f"{spec.condition} on {network.name}", len(images), unit="img") as task:
        for pixels, labels, ids in batches(images, size, runtime.device):
            made = run_attack(
                spec, network.model, runtime.images(pixels), labels, ids=ids, seed=seed
            )
            found.append(inside(spec, runtime.images(pixels), made).float().cpu().contiguous())
            task.advance(len(labels))
    return found


def _modules(network: LoadedModel, patterns: tuple[str, ...]) -> list[str] | None:
    """Modules whose names match; None for all."""
    from fnmatch import fnmatchcase

    from repsim.errors import UserError
    from repsim.hooks import unwrap
    from repsim.registry import near

    if not patterns:
        return None
    known = [name for name, _ in unwrap(network.model).named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(
                f"--layers {pattern!r} matches no module of {network.name}; near: "
                f"{near(pattern, known)}"
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _against(found: Compat, path: Path) -> dict[str, Any]:
    """An exported matrix minus these values."""
    import numpy as np

    from repsim.errors import UserError
    from repsim.interchange import read_torch_cka

    theirs: np.ndarray = read_torch_cka(path).matrix
    ours = found.result["similarity"].values
    if theirs.shape != ours.shape:
        raise UserError(
            f"--against {path} expects a matrix of {ours.shape[0]} × {ours.shape[1]} layers; got "
            f"{theirs.shape[0]} × {theirs.shape[1]}; choose the same networks and --layers"
        )
    size = np.abs(theirs - ours)
    return {"file": path.name, "largest": float(np.nanmax(size)), "mean": float(np.nanmean(size))}


def _print(found: Compat, summary: dict[str, Any]) -> None:
    from repsim.cli.common import print_table

    rows_, columns = found.result["similarity"].shape
    title = (
        f"torch_cka minus correct, {rows_} × {columns} layers, {summary['samples']} images in "
        f"batches of {summary['batch_size']}"
    )
    words = {"difference": "in all", "in_place": "tensors changed in place after the hook",
             "rounding": "rounding in float32"}  # fmt: skip
    print_table(
        title, ["part", "mean |difference|", "largest"],
        [[word, f"{summary[key]['mean']:.2g}", f"{summary[key]['largest']:.2g}"]
         for key, word in words.items() if summary[key]],
    )  # fmt: skip
    cell = summary.get("largest_cell")
    if cell:
        click.echo(
            f"largest: {cell['x_layer']} with {cell['y_layer']}: torch_cka "
            f"{cell['torch_cka']:.3f}, correct {cell['correct']:.3f}"
        )
    for side, word in (("x", "rows"), ("y", "columns")):
        changed = summary[f"changed_{side}"]
        if changed:
            few = ", ".join(f"{one['layer']} ({one['mean']:.2g})" for one in changed[:MOST])
            click.echo(f"{word} changed in place: {len(changed)}: {few}"
                       + (", ..." if len(changed) > MOST else ""))  # fmt: skip
    if "against" in summary:
        of = summary["against"]
        click.echo(f"{of['file']} is from torch_cka's values here: mean {of['mean']:.2g}, largest "
                   f"{of['largest']:.2g}")  # fmt: skip
