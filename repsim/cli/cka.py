"""`repsim cka`, and what it shares with `repsim compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.live import live_options
from repsim.cli.options import out_option, output_options, overwrite_option

if TYPE_CHECKING:
    import xarray as xr

    from repsim.pair import PairReport

DEFAULT_STORE = Path("features.h5")

stores_argument = click.argument("stores", nargs=-1, type=click.Path(path_type=Path))
pair_option = click.option(
    "--pair", default="clean,adv", show_default=True, metavar="A,B",
    help="Rows and columns: CONDITION or STORE:CONDITION; adv is the store's one attack.",
)  # fmt: skip
layers_option = click.option(
    "--layers", "patterns", multiple=True, metavar="PATTERN",
    help="Only layers that match; may be repeated. [default: all of the store]",
)  # fmt: skip
csv_option = click.option(
    "--csv", type=click.Path(path_type=Path), metavar="FILE", help="Also write a line a cell."
)


@click.command()
@stores_argument
@pair_option
@live_options
@click.option(
    "--estimator",
    type=click.Choice(["debiased", "biased", "minibatch"]),
    help="[default: debiased; with --model minibatch where the memory is too small]",
)
@click.option(
    "--kernel",
    default="linear",
    show_default=True,
    metavar="linear|rbf[:FRACTION]",
    help="rbf: bandwidth as a fraction of the median distance.",
)
@click.option(
    "--batch-size",
    type=int,
    help="Of the minibatch estimator, and with --model images at once. [default: 256]",
)
@click.option(
    "--groups",
    type=int,
    default=10,
    show_default=True,
    help="Jackknife groups behind the intervals; 1 for none.",
)
@click.option(
    "--among",
    type=click.Choice(["fooled", "unfooled", "right"]),
    help="Only images that are right clean: all of them, or those on which the attack succeeded "
    "or did not. With --model it expects --pair.",
)
@click.option(
    "--within",
    type=click.Choice(["class"]),
    help="Similarity within classes, their HSIC summed. With --model it expects --pair.",
)
@click.option(
    "--permutations",
    type=int,
    default=0,
    metavar="N",
    help="Also what chance gives, by N random orders of the images (999 are usual): p, and the "
    "value that 5% of them exceed. With --model it expects --pair.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the permutations and the attacks."
)
@click.option(
    "--influence",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also a CSV of how much each image changes each layer's similarity with itself. With "
    "--model it expects --pair.",
)
@click.option(
    "--drop-duplicates",
    is_flag=True,
    help="Leave out layers that hold the same activations as an earlier one.",
)
@layers_option
@out_option("cka.h5", "The result to write; the figure goes beside it as .png.")
@csv_option
@overwrite_option
@output_options
@click.pass_context
def cka(
    ctx: click.Context, /, stores: tuple[Path, ...], pair: str, estimator: str | None,
    kernel: str, batch_size: int | None, groups: int, among: str | None, within: str | None,
    permutations: int, seed: int, influence: Path | None, drop_duplicates: bool,
    patterns: tuple[str, ...], out: Path, csv: Path | None, overwrite: bool,
    json_file: Path | None, quiet: bool, **live: Any,
) -> None:  # fmt: skip
    """CKA of all layers of one condition with all layers of another, with 95% intervals.

    STORES are files of repsim extract, features.h5 by default. With --model the networks are run
    instead: all layers of all networks and conditions against one another, no activation written.

    \b
    repsim cka --pair clean,adv
    repsim cka st.h5 at.h5 --pair st:adv,at:adv --out across.h5
    repsim cka --pair st.h5:clean,at.h5:clean --out clean.h5
    repsim cka --pair clean,adv --among fooled --within class --out fooled.h5
    repsim cka --pair clean,adv --permutations 999 --influence images.csv --out tested.h5
    repsim cka --model a.pt --model b.pt --attack pgd --layers all --out live.h5
    """
    options: dict[str, Any] = {
        "measure": "cka", "estimator": estimator, "kernel": kernel, "batch_size": batch_size,
        "groups": groups, "among": among, "within": within, "permutations": permutations,
        "seed": seed, "drop_duplicates": drop_duplicates,
    }  # fmt: skip
    compare_or_run(
        ctx, live, stores, pair, patterns, out, csv, overwrite, json_file, quiet,
        influence_file=influence, **options,
    )  # fmt: skip


def compare_or_run(
    ctx: click.Context, live: dict[str, Any], stores: tuple[Path, ...], pair: str,
    patterns: tuple[str, ...], out: Path, csv: Path | None, overwrite: bool,
    json_file: Path | None, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Compare stores or, where --model was given, networks as they run."""
    from repsim.errors import UserError

    source = click.core.ParameterSource.COMMANDLINE
    given = [name for name in live if ctx.get_parameter_source(name) == source]
    if not live["models"]:
        if given:
            flag = {"attacks": "attack", "data_root": "data-root", "image_size": "image-size",
                    "step_size": "step-size"}.get(given[0], given[0])  # fmt: skip
            raise UserError(f"--{flag} belongs to a comparison of networks; add --model FILE")
        run(stores, pair, patterns, out, csv, overwrite, json_file, quiet, **options)
        return
    if stores:
        raise UserError(
            f"a comparison expects stores or networks, not both; got {stores[0]} and --model"
        )
    from repsim.cli.live import run_live

    asked = ctx.get_parameter_source("pair") == source
    run_live(
        pair=pair if asked else None, patterns=patterns, out=out, csv=csv, overwrite=overwrite,
        json_file=json_file, quiet=quiet, **live, **options,
    )  # fmt: skip


def run(
    stores: tuple[Path, ...], pair: str, patterns: tuple[str, ...], out: Path, csv: Path | None,
    overwrite: bool, json_file: Path | None, quiet: bool, *, influence_file: Path | None = None,
    **options: Any,
) -> None:  # fmt: skip
    """Compare, write the result and its figure, print the numbers."""
    from repsim.cli.common import check_outputs
    from repsim.pair import compare_pair
    from repsim.progress import reporter

    check_outputs(out, figure_beside(out), csv, json_file, influence_file)
    there = result_there(out) if out.exists() and not overwrite else None
    if not stores and not all(".h5:" in side for side in pair.split(",")):
        stores = (DEFAULT_STORE,)
    report = compare_pair(
        stores, pair, layers=list(patterns), progress=reporter(quiet=quiet),
        influence=influence_file is not None, **options,
    )  # fmt: skip
    finish(report, there, out, csv, json_file, quiet, influence_file)


def finish(
    report: PairReport, there: xr.Dataset | None, out: Path, csv: Path | None,
    json_file: Path | None, quiet: bool, influence_file: Path | None,
) -> None:  # fmt: skip
    """Write a comparison of two sides and print its numbers.

    Raises:
        UserError: `there`, what `out` holds, is another comparison.
    """
    from repsim.cli.common import write_json
    from repsim.files import replacing
    from repsim.plot import panels, save_figure
    from repsim.result import save_result, to_csv

    figure = figure_beside(out)
    if there is not None:
        refuse_another(out, there, report.result)
    save_result(report.result, out)
    save_figure(panels([report.result]), figure)
    if csv is not None:
        to_csv(report.result, csv)
    if influence_file is not None and report.influence is not None:
        with replacing(influence_file) as beside:
            report.influence.to_csv(beside, index=False)
    write_json(json_file, report.summary())
    if not quiet:
        _say(report, out, figure, influence_file)


def figure_beside(out: Path) -> Path:
    """Where the figure of a result goes.

    Raises:
        UserError: the result has that name itself.
    """
    from repsim.errors import UserError

    figure = out.with_suffix(".png")
    if out == figure:
        raise UserError(f"--out {out} expects a name for the result, such as {out.stem}.h5; the "
                        f"figure goes beside it as {figure.name}")  # fmt: skip
    return figure


def _say(report: PairReport, out: Path, figure: Path, influence_file: Path | None) -> None:
    from repsim.cli.common import echo_next

    for note in report.notes:
        click.echo(note, err=True)
    _print(report)
    known = report.summary()
    mask = ""
    if "permutations" in known:
        cells, level = report.result["p"].size, known["null_95_max"]
        click.echo(
            f"{known['cells_above_null_95']} of {cells} cells lie above chance at 5%, each by "
            f"itself; {known['cells_above_null_95_max']} above {level:.4f}, which in "
            f"{known['permutations']} permutations the largest of all cells exceeds in 5%"
        )
        mask = "--mask max "
    if report.influence is not None:
        _print_influence(report)
    files = [str(out), str(figure), *([str(influence_file)] if influence_file else [])]
    click.echo(f"wrote {', '.join(files[:-1])} and {files[-1]}")
    echo_next(f"repsim plot {out} {mask}--out heatmap.pdf", f"repsim info {out}")


def _print_influence(report: PairReport) -> None:
    from repsim.cli.common import print_table

    assert report.influence is not None
    mean = report.alignment["alignment_mean"]
    print_table(
        "images that change the alignment's mean most",
        ["image", "label", "mean without it", "change"],
        [
            [str(row["index"]), str(row["label"]), f"{mean + row['mean']:.4f}",
             f"{row['mean']:+.5f}"]
            for row in report.influence.head(5).to_dict("records")
        ],
    )  # fmt: skip


def result_there(out: Path) -> xr.Dataset:
    """The result that `out` holds; anything else is never written over unasked."""
    from repsim.errors import UserError
    from repsim.result import load_result

    try:
        return load_result(out)
    except UserError:
        raise UserError(
            f"--out {out} is there and is no result of a comparison; give another name"
        ) from None


def refuse_another(out: Path, there: xr.Dataset, new: xr.Dataset) -> None:
    """A result of the same comparison is replaced; another one is kept."""
    from repsim.errors import UserError

    different = [
        key
        for key in ("measure", "estimator", "kernel", "provenance")
        if there.attrs.get(key) != new.attrs[key]
    ]
    different += [
        key
        for key in ("x_model", "x_condition", "x_layer", "y_model", "y_condition", "y_layer")
        if list(there[key].values) != list(new[key].values)
    ]
    if different:
        pair = json.loads(there.attrs["summary"]).get("pair")
        raise UserError(
            f"--out {out} holds another comparison ({_what(different[0], there, new)}"
            + (f"; its pair is {pair}" if pair else "")
            + "); give another name or --overwrite"
        )


def _what(name: str, there: xr.Dataset, new: xr.Dataset) -> str:
    """`jackknife.groups 10 there, 5 now`: what differs, inside the provenance too."""
    if name != "provenance":
        return f"{name} differs"
    before, now = (_flat(json.loads(one.attrs.get(name, "{}"))) for one in (there, new))
    key = next((key for key in {**before, **now} if before.get(key) != now.get(key)), name)
    return f"{key} {before.get(key)} there, {now.get(key)} now"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items()
            for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}  # fmt: skip


def _print(report: PairReport) -> None:
    from repsim.cli.common import mean_number, print_table
    from repsim.similarity.table import needs

    attrs = report.result.attrs
    outputs = needs(attrs["measure"]) == "logits"
    means = ["alignment_mean"] if outputs else ["alignment_mean", "alignment_last_third"]
    rows = []
    for sides, found, word in (
        (report.sides, report.alignment, ""),
        (report.controls, report.control, " (control)"),
    ):
        if sides and found:
            rows.append([
                " with ".join(_short(side, report) for side in sides) + word,
                *(mean_number(found, key) for key in means),
            ])  # fmt: skip
    rows_, columns = report.result["similarity"].shape
    measure = attrs["measure"].upper() if attrs["measure"] == "cka" else attrs["measure"]
    kind = " ".join(part for part in (attrs["estimator"], attrs["kernel"], measure) if part)
    images = f"{attrs['samples']} images"
    if report.among:
        images = f"{attrs['samples']} of {report.among['of']} images ({report.among['among']})"
    if json.loads(attrs["provenance"]).get("within"):
        images += " within classes"
    title = f"{kind}, {images}" if outputs else f"{kind}, {rows_} × {columns} layers, {images}"
    title += " (95% intervals)" if "lower" in report.result else ""
    if rows:
        print_table(title, ["", attrs["measure"]] if outputs else
                    ["same layer", "alignment, mean", "last third"], rows)  # fmt: skip
        title = ""
    far = [
        [_short((name.partition(":")[0], name.partition(":")[2]), report),
         mean_number(found, "long_range")]
        for name, found in report.long_range.items()
        if found["long_range"] is not None
    ]  # fmt: skip
    if far:
        print_table(title, ["layers far apart", "long-range similarity"], far)


def _short(side: tuple[str, str], report: PairReport) -> str:
    """The condition; with its store's name where there are several."""
    several = len({name.partition(":")[0] for name in report.long_range}) > 1
    return ":".join(side) if several else side[1]
