"""`repsim cka --model ...`: networks compared as they run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import (
    DEFAULT_SAMPLES,
    attack_settings,
    attack_size_options,
    data_options,
    foreign_options,
    samples_option,
    stack,
)

if TYPE_CHECKING:
    import xarray as xr

    from repsim.attacks import AttackSpec
    from repsim.checkpoint import LoadedModel
    from repsim.compare import AllPairs
    from repsim.data import ImageData
    from repsim.live import LiveGrams
    from repsim.pair import PairReport

Side = tuple[str, str]  # network, condition


def memory_bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Callback of an option: `2GB`, `500MB` or a number of bytes."""
    if value is None:
        return None
    text = value.strip().upper().removesuffix("B").removesuffix("I")
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(text[-1:], 1)
    try:
        size = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        size = 0.0
    if not 0 < size < 2**60:
        raise click.BadParameter(f"expected a size such as 2GB or 500MB; got {value!r}")
    return int(size)


live_options = stack(
    click.option("--model", "models", multiple=True, metavar="FILE|NAME",
                 help="Run this network instead of reading stores; may be repeated."),
    foreign_options,
    click.option("--attack", "attacks", multiple=True, metavar="ATTACK",
                 help="With --model: attacks made on each network; may be repeated. "
                 "[default: clean images only]"),
    attack_size_options,
    click.option("--control/--no-control", default=True, show_default=True,
                 help="With --model: also noise of the attack's size."),
    data_options("test"),
    samples_option(DEFAULT_SAMPLES),
    click.option("--memory", callback=memory_bytes, default="2GB", show_default=True,
                 metavar="SIZE", help="With --model: what activations and Gram matrices may take."),
    click.option("--cache", type=click.Path(path_type=Path), default=Path("grams"),
                 show_default=True, metavar="FOLDER",
                 help="With --model: where Gram matrices are kept and found again."),
    click.option("--no-cache", is_flag=True, help="With --model: keep none."),
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda"),
    click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]), default="auto",
                 show_default=True),
)  # fmt: skip


def load_all(
    names: Sequence[str], *, arch: str | None, mean: Any, std: Any, seed: int,
    data: str | None, samples: int, say: Any, **source: Any,
) -> tuple[list[LoadedModel], ImageData]:  # fmt: skip
    """The networks, each with a name of its own, and the images that all of them take."""
    from repsim.cli.common import model_and_data
    from repsim.errors import UserError

    loaded, images = [], None
    for name in names:
        one, found = model_and_data(
            name, data=data, samples=samples, arch=arch, mean=mean, std=std, seed=seed,
            say=say, **source,
        )  # fmt: skip
        if images is not None and found.fingerprint != images.fingerprint:
            raise UserError(
                f"the networks expect the same images; {loaded[0].name} was trained on "
                f"{images.name}, {one.name} on {found.name}; give --data"
            )
        images = images or found
        loaded.append(one)
    assert images is not None
    named = [
        replace(one, name=name)
        for one, name in zip(loaded, distinct(names, [one.name for one in loaded]), strict=True)
    ]
    return named, images


def distinct(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names apart: where files have one stem, their folders come before it.

    Raises:
        UserError: the same network twice.
    """
    from repsim.errors import UserError

    found = list(names)
    for i, name in enumerate(names):
        same = [k for k, other in enumerate(names) if other == name]
        if len(same) < 2:
            continue
        parts = [Path(paths[k]).absolute().with_suffix("").parts for k in same]
        depth = next(
            (d for d in range(1, max(map(len, parts)) + 1)
             if len({p[-d:] for p in parts}) == len(parts)),
            None,
        )  # fmt: skip
        if depth is None:
            raise UserError(f"--model expects different networks; got {paths[i]} twice")
        found[i] = "/".join(Path(paths[i]).absolute().with_suffix("").parts[-depth:])
    return found


def summary(grams: LiveGrams, everything: AllPairs) -> dict[str, Any]:
    """The numbers as plain values."""
    from repsim.evaluate import accuracy_interval

    models = list(dict.fromkeys(model for model, _ in grams.sides))
    found: dict[str, Any] = {
        "samples": everything.samples, "estimator": grams.estimator, "models": {}, "pairs": [],
    }  # fmt: skip
    for model in models:
        conditions = [condition for name, condition in grams.sides if name == model]
        numbers: dict[str, Any] = {}
        for condition in conditions:
            side = (model, condition)
            entry: dict[str, Any] = {"kind": grams.kinds[condition]}
            if (right := grams.accuracy(side)) is not None:
                entry["accuracy"] = right[0] / right[1]
                entry["accuracy_ci"] = list(accuracy_interval(*right))
            if condition != "clean":
                entry |= everything.alignment((model, "clean"), side)
            entry |= everything.long_range(side)
            numbers[condition] = entry
        found["models"][model] = numbers
    for i, first in enumerate(models):
        for second in models[i + 1 :]:
            for condition in grams.kinds:
                sides = (first, condition), (second, condition)
                if not set(sides) <= set(grams.sides):
                    continue
                layers = [[key[2] for key in everything.keys if key[:2] == s] for s in sides]
                if layers[0] == layers[1]:
                    aligned = everything.alignment(*sides)
                    found["pairs"].append(
                        {"models": [first, second], "condition": condition, **aligned}
                    )
    return found


def show(everything: AllPairs, numbers: dict[str, Any], measure: str) -> None:
    """The tables."""
    from repsim.cli.common import mean_number, percent, print_table
    from repsim.similarity.table import needs

    outputs = needs(measure.lower()) == "logits"
    keys = ["alignment_mean", "alignment_last_third", "long_range"][: 1 if outputs else None]
    heads = (
        ["with clean"] if outputs else ["alignment with clean, mean", "last third", "long-range"]
    )
    attrs = everything.pairs.attributes
    kind = " ".join(
        part for part in (str(attrs.get("estimator", "")), str(attrs.get("kernel", "")), measure)
        if part
    )  # fmt: skip
    count = len(everything.keys)
    rows = [
        [
            model,
            condition + (" (control)" if entry["kind"] == "control" else ""),
            percent(entry["accuracy"], entry["accuracy_ci"]) if "accuracy" in entry else "no head",
            *(mean_number(entry, key) for key in keys),
        ]
        for model, conditions in numbers["models"].items()
        for condition, entry in conditions.items()
    ]
    print_table(
        f"{kind}, {count} × {count} {'predictions' if outputs else 'layers'}, "
        f"{everything.samples} images"
        + ("" if everything.pairs.replicates is None else " (95% intervals)"),
        ["network", "condition", "accuracy", *heads],
        rows,
    )  # fmt: skip
    if numbers["pairs"]:
        print_table(
            "two networks, each on its own images" if outputs
            else "same layer of two networks, each on its own images",
            ["networks", "condition", *(["value"] if outputs else ["mean", "last third"])],
            [
                [
                    " with ".join(pair["models"]), pair["condition"],
                    *(mean_number(pair, key) for key in keys[:2]),
                ]
                for pair in numbers["pairs"]
            ],
        )  # fmt: skip


def _attach(result: xr.Dataset, grams: LiveGrams, numbers: dict[str, Any]) -> None:
    """Summary and provenance of a live comparison to its result."""
    known = json.loads(result.attrs["provenance"])
    result.attrs["provenance"] = json.dumps({**known, "live": grams.provenance})
    result.attrs["summary"] = json.dumps({**json.loads(result.attrs["summary"]), "live": numbers})


def run_live(
    *, models: Sequence[str], attacks: Sequence[str], eps: str | None, norm: str | None,
    steps: str | None, step_size: str | None, restarts: str | None, control: bool,
    patterns: Sequence[str], pair: str | None, measure: Any, groups: int, memory: int,
    cache: Path, no_cache: bool, device: str, precision: str, out: Path, csv: Path | None,
    overwrite: bool, json_file: Path | None, quiet: bool, seed: int = 0,
    estimator: str | None = None, kernel: str | None = None, batch_size: int | None = None,
    influence_file: Path | None = None, among: str | None = None, within: str | None = None,
    permutations: int = 0, drop_duplicates: bool = False, **source: Any,
) -> None:  # fmt: skip
    """Run the networks, keep their Gram matrices, compare, write the result, print the numbers."""
    from repsim.cli.cka import figure_beside, finish, result_there
    from repsim.cli.common import attack_specs, check_outputs
    from repsim.distributed import is_main, start
    from repsim.errors import UserError
    from repsim.live import GramCache, live_grams
    from repsim.progress import Silent, reporter
    from repsim.runtime import Runtime
    from repsim.similarity.table import needs

    further = {"among": among, "within": within, "permutations": permutations,
               "influence": influence_file}  # fmt: skip
    asked = [name for name, value in further.items() if value]
    if pair is None and asked:
        raise UserError(f"--{asked[0]} expects one pair of sides; add --pair A,B")
    if needs(measure) == "activations":
        raise UserError(
            f"the measure {getattr(measure, 'name', measure)} expects activations, which running "
            "networks do not leave; write them first: repsim extract"
        )
    if groups < 1:
        raise UserError(f"--groups expects at least 1 (1: no intervals); got {groups}")
    check_outputs(out, figure_beside(out), csv, json_file, influence_file)
    there = result_there(out) if out.exists() and not overwrite else None
    cka = measure == "cka"
    folder = None if no_cache else cache
    with start(device) as place:
        progress = reporter(quiet=quiet) if is_main() else Silent()
        loaded, images = load_all(models, seed=seed, say=progress.say, **source)
        runtime = Runtime.of(place, precision)
        settings = attack_settings(eps, norm, steps, step_size, restarts)
        specs = [
            attack_specs(attacks, images, settings, one, runtime) if attacks else []
            for one in loaded
        ]
        for spec in specs[0]:
            progress.say(f"attack {spec.condition}: {spec.text}")
        if pair is not None:  # a slip of the pen is told before the work
            sides_of(pair, *_expected(loaded, specs, control))
        grams = live_grams(
            loaded, images, specs, layers=list(patterns) or "blocks", estimator=estimator,
            kernel=kernel or "linear", groups=groups, batch_size=batch_size or 256,
            memory=memory, cache=GramCache(folder), runtime=runtime, seed=seed, control=control,
            whole=not cka or bool(asked), progress=progress,
        )  # fmt: skip
        if not is_main():
            return
    if needs(measure) == "logits":
        grams = replace(grams, representations=grams.outputs())
    options: dict[str, Any] = {
        "measure": measure, "groups": groups, "memory": memory, "device": runtime.device,
        "progress": progress, **({"estimator": grams.estimator, "kernel": kernel} if cka else {}),
    }  # fmt: skip
    if not quiet and folder is not None:
        click.echo(
            f"Gram matrices in {folder}: {grams.reused} reused, {grams.made} made, "
            f"{grams.kept / 2**20:.1f} MiB written", err=True,
        )  # fmt: skip
    if pair is not None and grams.minibatch is None:
        report = _two_sides(
            grams, pair, among=among, within=within, permutations=permutations, seed=seed,
            influence=influence_file is not None, drop_duplicates=drop_duplicates, **options,
        )  # fmt: skip
        finish(report, there, out, csv, json_file, quiet, influence_file)
        return
    _everything(grams, pair, there, out, csv, json_file, quiet, drop_duplicates, options)


def _two_sides(grams: LiveGrams, pair: str, **options: Any) -> PairReport:
    """As `repsim cka` compares two sides of stores."""
    from repsim.pair import Images, compare_sides

    x, y = sides_of(pair, grams.sides, grams.kinds)
    controls = [_control(grams, side) for side in (x, y)]
    beside = None
    if None not in controls and controls != [x, y]:
        beside = (controls[0] or x, controls[1] or y)
    known = {side: grams.right(side) for side in (x, y, (x[0], "clean"), (y[0], "clean"))}
    wanted = {x, y, *(beside or ())}
    images = Images(
        grams.data.ids, grams.data.index.numpy(), grams.data.labels.numpy(),
        {side: right for side, right in known.items() if right is not None},
    )  # fmt: skip
    report = compare_sides(
        [one for one in grams.representations if (one.model, one.condition) in wanted],
        x,
        y,
        images=images,
        controls=beside,
        attacked=[side for side in (x, y) if grams.kinds[side[1]] == "attack"],
        **options,
    )
    report.notes += grams.notes
    known_before = json.loads(report.result.attrs["provenance"])
    report.result.attrs["provenance"] = json.dumps({**known_before, "live": grams.provenance})
    return report


def _control(grams: LiveGrams, side: tuple[str, str]) -> tuple[str, str] | None:
    """The side itself, or its network's control in place of an attack; None if it has none."""
    if grams.kinds[side[1]] != "attack":
        return side
    controls = [name for name, kind in grams.kinds.items() if kind == "control"]
    return (side[0], controls[0]) if controls else None


def _everything(
    grams: LiveGrams, pair: str | None, there: xr.Dataset | None, out: Path, csv: Path | None,
    json_file: Path | None, quiet: bool, drop_duplicates: bool, options: dict[str, Any],
) -> None:  # fmt: skip
    from repsim.cli.cka import figure_beside, refuse_another
    from repsim.cli.common import echo_next, write_json
    from repsim.compare import compare_all
    from repsim.plot import save_figure
    from repsim.plot.sides import sides_figure
    from repsim.result import save_result, to_csv

    everything = grams.minibatch
    if everything is None:
        everything = compare_all(grams.representations, ids=grams.data.ids, **options)
    dropped: dict[str, str] = {}
    if drop_duplicates:
        everything, dropped = everything.without_duplicates()
    numbers = summary(grams, everything)
    result = (
        everything.matrix(*sides_of(pair, grams.sides, grams.kinds)) if pair else everything.whole()
    )
    _attach(result, grams, numbers)
    if there is not None:
        refuse_another(out, there, result)
    figure = figure_beside(out)
    save_result(result, out)
    save_figure(sides_figure(result), figure)
    if csv is not None:
        to_csv(result, csv)
    write_json(json_file, numbers)
    if quiet:
        return
    for note in dict.fromkeys([*grams.notes, *everything.pairs.notes]):
        click.echo(note, err=True)
    if dropped:
        few = ", ".join(f"{name} ({first})" for name, first in list(dropped.items())[:4])
        click.echo(
            f"left out {len(dropped)} layers that equal an earlier one: {few}"
            + (", ..." if len(dropped) > 4 else ""), err=True,
        )  # fmt: skip
    name = everything.measure
    show(everything, numbers, name.upper() if name == "cka" else name)
    click.echo(f"wrote {out} and {figure}")
    echo_next(f"repsim plot {out} --out heatmap.pdf", f"repsim info {out}")


def _expected(
    loaded: Sequence[LoadedModel], specs: Sequence[Sequence[AttackSpec]], control: bool
) -> tuple[list[Side], dict[str, str]]:
    """The sides that the passes will have, and the kinds of their conditions."""
    kinds = {"clean": "clean"}
    kinds |= {"noise": "control"} if control and specs[0] else {}
    kinds |= {spec.condition: "control" if spec.is_control else "attack" for spec in specs[0]}
    return [(one.name, condition) for one in loaded for condition in kinds], kinds


def sides_of(pair: str, sides: Sequence[Side], kinds: Mapping[str, str]) -> tuple[Side, Side]:
    """The two sides named by `A,B`; each is CONDITION (one network only) or NETWORK:CONDITION.

    Raises:
        UserError: not two sides, or one that was not compared.
    """
    from repsim.errors import UserError
    from repsim.registry import near

    models = list(dict.fromkeys(model for model, _ in sides))
    attacks = [name for name, kind in kinds.items() if kind == "attack"]
    found = []
    for text in (side.strip() for side in pair.split(",")):
        model, _, condition = text.rpartition(":")
        if condition == "adv" and len(attacks) == 1:
            condition = attacks[0]
        side = (model or models[0], condition)
        if (not model and len(models) > 1) or side not in sides:
            known = [":".join(one) if len(models) > 1 else one[1] for one in sides]
            raise UserError(
                f"--pair expects two of {', '.join(known)}; got {text!r}; near: {near(text, known)}"
            )
        found.append(side)
    if len(found) != 2:
        raise UserError(f"--pair expects two sides, such as clean,adv; got {pair!r}")
    return found[0], found[1]
