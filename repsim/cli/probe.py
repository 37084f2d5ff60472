"""`repsim probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repsim.cli.options import (
    attack_settings,
    attack_size_options,
    foreign_options,
    numbers,
    out_option,
    output_options,
    overwrite_option,
    run_options,
)

if TYPE_CHECKING:
    from repsim.probe import ProbeReport


@click.command()
@click.option("--train", "train_store", type=click.Path(path_type=Path), metavar="STORE",
              help="Store of the training split: repsim extract --split train.")  # fmt: skip
@click.option("--test", "test_store", type=click.Path(path_type=Path), metavar="STORE",
              help="Store of the test split, of the same network.")  # fmt: skip
@click.option("--model", metavar="FILE|NAME",
              help="Probe this network as it runs; nothing is stored. With stores: theirs, for "
              "--adaptive.")  # fmt: skip
@foreign_options
@click.option("--attack", "attacks", multiple=True, metavar="NAME[,key=value...]",
              help="Made on the whole network (transfer); may be repeated.")  # fmt: skip
@click.option("--adaptive", is_flag=True,
              help="Also attack each probe itself, by the same attacks.")  # fmt: skip
@click.option("--no-control", "control", flag_value=False, default=True,
              help="Leave out noise of the attack's size.")  # fmt: skip
@attack_size_options
@click.option("--train-on", "train_on", multiple=True, default=("clean",), show_default=True,
              metavar="CONDITION",
              help="clean, adv (the one attack), an attack's name, or both:NAME; may be "
              "repeated.")  # fmt: skip
@click.option("--layers", "patterns", multiple=True, metavar="blocks|leaf|all|PATTERN",
              help="Which layers. [default: blocks; of stores all they have]")  # fmt: skip
@click.option("--solver", type=click.Choice(["ridge", "logistic", "sgd", "adam", "knn"]),
              default="ridge", show_default=True,
              help="ridge: exact, one pass; logistic: L-BFGS; sgd, adam: steps on batches, as in "
              "the literature; knn: nearest neighbours.")  # fmt: skip
@click.option("--strengths", callback=numbers, metavar="N,N,...",
              help="Penalties (of knn: neighbours) of which one is chosen on a part of the "
              "training split.")  # fmt: skip
@click.option("--reduce", metavar="auto|flatten|avgpool|project:K", default="",
              help="What a probe sees of a layer. auto: wide layers pooled to --features. "
              "[default: flatten for sgd and adam, else auto]")  # fmt: skip
@click.option("--features", "most", type=click.IntRange(min=1), default=1024, show_default=True,
              metavar="N", help="Features that --reduce auto leaves at most.")  # fmt: skip
@click.option("--validation", type=float, default=0.1, show_default=True, metavar="FRACTION",
              help="Part of the training split that chooses the strength.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=30, show_default=True,
              help="Of sgd and adam.")  # fmt: skip
@click.option("--lr", type=float, default=0.0, help="Of sgd and adam. [default: 2 and 0.02]")
@click.option("--memory", type=click.IntRange(min=1), default=2048, show_default=True,
              metavar="MIB", help="For features and matrices; more layers take turns.")  # fmt: skip
@click.option("--no-hold", "hold", flag_value=False, default=True,
              help="sgd and adam: run the network anew in every epoch, though the features fit "
              "the memory.")  # fmt: skip
@click.option("--retrain-from", multiple=True, metavar="LAYER",
              help="Instead of probes: initialise all after this layer anew and train it, the "
              "rest frozen; may be repeated.")  # fmt: skip
@click.option("--data", metavar="NAME|FOLDER",
              help="Data set: a name, a folder, or file.py:function. [default: the checkpoint's "
              "own]")  # fmt: skip
@click.option("--data-root", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Where data sets lie. [default: $REPSIM_DATA, else ./data]")  # fmt: skip
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
@click.option("--image-size", type=click.IntRange(min=4), metavar="PIXELS",
              help="Bring images to this size.")  # fmt: skip
@click.option("--train-samples", type=click.IntRange(min=2), metavar="N",
              help="Training images, drawn class-balanced. [default: all]")  # fmt: skip
@click.option("--samples", type=int, default=1000, show_default=True, metavar="N",
              help="Test images, drawn class-balanced; the same for every --seed.")  # fmt: skip
@run_options(256)
@out_option("probes.h5", "The result to write; the figure goes beside it as .png.")
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE",
              help="Also write the table as CSV.")  # fmt: skip
@overwrite_option
@output_options
def probe(
    train_store: Path | None, test_store: Path | None, model: str | None, attacks: tuple[str, ...],
    adaptive: bool, control: bool, eps: str | None, norm: str | None, steps: str | None,
    step_size: str | None, restarts: str | None, train_on: tuple[str, ...],
    patterns: tuple[str, ...], strengths: tuple[float, ...] | None, retrain_from: tuple[str, ...],
    train_samples: int | None, samples: int, device: str, precision: str, out: Path,
    csv: Path | None, overwrite: bool, json_file: Path | None, quiet: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a linear probe on every layer at once, and test it clean and attacked.

    \b
    repsim probe --model ckpt.pt --attack pgd --adaptive
    repsim probe --model ckpt.pt --attack pgd --train-on clean --train-on both:pgd --solver adam
    repsim probe --train train.h5 --test features.h5
    repsim probe --model ckpt.pt --attack pgd --retrain-from layer2.1 --retrain-from layer3.1
    """
    from repsim.cli.common import check_outputs, echo_next, write_json
    from repsim.errors import UserError
    from repsim.plot import save_figure
    from repsim.plot.probes import probe_figure
    from repsim.progress import reporter
    from repsim.runtime import Runtime

    figure = out.with_suffix(".png")
    if out == figure:
        raise UserError(
            f"--out {out} expects a name for the result, such as {out.stem}.h5; the figure goes "
            f"beside it as {figure.name}"
        )
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} is there; give another name or --overwrite")
    check_outputs(out, figure, csv, json_file)
    stored = train_store is not None or test_store is not None
    if stored and (train_store is None or test_store is None):
        raise UserError(
            "--train and --test expect each other: a store of the training split and one of the "
            "test split; write the missing one: repsim extract --split train --out train.h5"
        )
    if not stored and model is None:
        raise UserError("probe expects --model CHECKPOINT, or --train STORE and --test STORE")
    if stored and retrain_from:
        raise UserError("--retrain-from expects a network, not stores; give --model alone")
    progress = reporter(quiet=quiet)
    runtime = Runtime.of(device, precision)
    settings = attack_settings(eps, norm, steps, step_size, restarts)
    shared = {
        "train_on": train_on, "adaptive": adaptive, "runtime": runtime, "progress": progress,
    }  # fmt: skip
    trained = {
        **{name: options[name] for name in ("solver", "reduce", "most", "validation", "epochs",
                                            "lr", "memory", "hold", "batch_size", "seed")},
        "strengths": strengths or (),
    }  # fmt: skip
    trained["memory"] <<= 20
    if stored:
        assert train_store is not None
        assert test_store is not None
        report = _stored(train_store, test_store, model, patterns, attacks, settings, options,
                         {**shared, **trained})  # fmt: skip
    else:
        assert model is not None
        live = {
            "patterns": patterns, "attacks": attacks, "settings": settings, "control": control,
            "samples": samples, "train_samples": train_samples, "retrain_from": retrain_from,
        }  # fmt: skip
        report = _live(model, options, live, shared, trained)
    report.save(out)
    if csv is not None:
        report.to_csv(csv)
    classes = len(set(report.labels.tolist()))
    save_figure(probe_figure(report.table, report.network, chance=1 / classes), figure)
    write_json(json_file, report.to_json())
    if not quiet:
        for note in report.notes:
            click.echo(note, err=True)
        _print(report)
        click.echo(f"wrote {out} and {figure}")
        echo_next(f"repsim info {out}")


def _stored(
    train: Path, test: Path, model: str | None, patterns: tuple[str, ...], attacks: tuple[str, ...],
    settings: dict[str, str], options: dict[str, Any], given: dict[str, Any],
) -> ProbeReport:  # fmt: skip
    from repsim.attack_files import bind
    from repsim.attacks import parse_attacks
    from repsim.checkpoint import load_model
    from repsim.data import default_eps
    from repsim.errors import UserError
    from repsim.probe import probe_stores
    from repsim.store import open_store

    if attacks and not given["adaptive"]:
        raise UserError(
            "--attack with stores is for --adaptive; the stores hold the images attacked against "
            "the network: repsim extract --attack ..."
        )
    loaded = None if model is None else load_model(model, arch=options["arch"])
    with open_store(train) as one, open_store(test) as other:
        specs = []
        if given["adaptive"] and loaded is not None:
            eps = default_eps(str(other.data["name"]))
            specs = [
                bind(spec, loaded, given["runtime"])
                for text in attacks or ["pgd"]
                for spec in parse_attacks(text, eps=eps, defaults=settings)
            ]
        return probe_stores(
            one, other, layers=patterns or None, model=loaded, attacks=specs, **given
        )


def _live(
    model: str, options: dict[str, Any], live: dict[str, Any], shared: dict[str, Any],
    trained: dict[str, Any],
) -> ProbeReport:  # fmt: skip
    from repsim.cli.common import attack_specs, model_and_data
    from repsim.probe import probe_live

    say, runtime = shared["progress"].say, shared["runtime"]
    images = {
        name: options[name]
        for name in ("data", "data_root", "download", "image_size", "arch", "mean", "std", "seed")
    }
    loaded, test = model_and_data(
        model, split="test", samples=live["samples"], say=say, **images
    )  # fmt: skip
    _, train = model_and_data(
        model, split="train", samples=live["train_samples"], say=lambda text: None, **images
    )
    attacks = live["attacks"] or (("pgd",) if shared["adaptive"] or live["retrain_from"] else ())
    specs = attack_specs(attacks, test, live["settings"], loaded, runtime) if attacks else []
    for spec in specs:
        say(f"attack {spec.condition}: {spec.text}")
    layers = list(live["patterns"]) or "blocks"
    given = {"attacks": specs, "control": live["control"], **shared}
    if live["retrain_from"]:
        from repsim.probe.retrain import retrain

        given.pop("adaptive")
        wanted = ("epochs", "lr", "batch_size", "seed")
        return retrain(loaded, train, test, layers=live["retrain_from"], **given,
                       **{name: trained[name] for name in wanted})  # fmt: skip
    return probe_live(loaded, train, test, layers=layers, **given, **trained)


def _print(report: ProbeReport) -> None:
    """A table for each training: a row a layer, a column for each test and target."""
    from repsim.cli.common import percent, print_table

    retrained = report.table["solver"].iloc[0] == "retrain"
    for train, table in report.table.groupby("train", sort=False):
        columns = list(dict.fromkeys(zip(table["test"], table["attack"], strict=True)))
        rows = []
        for layer in report.layers:
            part = table[table["layer"] == layer].set_index(["test", "attack"])
            first = part.iloc[0]
            cells = [
                percent(part.loc[key, "accuracy"], (part.loc[key, "lower"], part.loc[key, "upper"]))
                for key in columns
            ]
            rows.append([layer, f"{first['used_features']} ({first['reduce']})", *cells])
        what = "all after the layer retrained" if retrained else f"{first['solver']} probes trained"
        print_table(
            f"{report.network}: {what} on {train}, accuracy on {len(report.labels)} test images "
            "(95% intervals)",
            ["layer", "features",
             *(test + ("" if attack == "none" else f" ({attack})") for test, attack in columns)],
            rows,
        )  # fmt: skip
    if (report.table["attack"] != "none").any():
        ours = "the retrained network" if retrained else "the probe"
        click.echo(f"transfer: attacked against the whole network; adaptive: against {ours}")
