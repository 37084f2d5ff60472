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

# What a way of working has no use for; given all the same, it was meant for something else.
_UNUSED = {
    "--retrain-from": (
        "adaptive", "patterns", "solver", "strengths", "reduce", "most", "validation", "memory",
        "hold",
    ),
    "--train STORE --test STORE": (
        "control", "data", "data_root", "download", "image_size", "train_samples", "samples",
    ),
    "--agree without a network": (
        "attacks", "adaptive", "control", "eps", "norm", "steps", "step_size", "restarts",
        "train_on", "patterns", "solver", "strengths", "reduce", "most", "validation", "epochs",
        "lr", "memory", "hold", "retrain_from", "data", "data_root", "download", "image_size",
        "train_samples", "samples", "csv",
    ),
}  # fmt: skip


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
              help="Of sgd, adam and retraining.")  # fmt: skip
@click.option("--lr", type=float, default=0.0,
              help="Of sgd, adam and retraining. [default: 2, 0.02 and 0.05]")  # fmt: skip
@click.option("--memory", type=click.IntRange(min=1), default=2048, show_default=True,
              metavar="MIB", help="For features and matrices; more layers take turns.")  # fmt: skip
@click.option("--no-hold", "hold", flag_value=False, default=True,
              help="sgd and adam: run the network anew in every epoch, though the features fit "
              "the memory.")  # fmt: skip
@click.option("--retrain-from", multiple=True, metavar="LAYER",
              help="Instead of probes: initialise all after this layer anew and train it, the "
              "rest frozen; may be repeated.")  # fmt: skip
@click.option("--agree", "agree", multiple=True, type=click.Path(path_type=Path), metavar="RESULT",
              help="Also say how often these probes and those of an earlier result, of another "
              "network, predict the same; may be repeated. Without --model: only those of the "
              "results given.")  # fmt: skip
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
@click.pass_context
def probe(
    ctx: click.Context, /, train_store: Path | None, test_store: Path | None, model: str | None,
    attacks: tuple[str, ...], adaptive: bool, control: bool, eps: str | None, norm: str | None,
    steps: str | None, step_size: str | None, restarts: str | None, train_on: tuple[str, ...],
    patterns: tuple[str, ...], strengths: tuple[float, ...] | None, retrain_from: tuple[str, ...],
    agree: tuple[Path, ...], train_samples: int | None, samples: int, device: str, precision: str,
    out: Path, csv: Path | None, overwrite: bool, json_file: Path | None, quiet: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Train a linear probe on every layer at once, and test it clean and attacked.

    \b
    repsim probe --model ckpt.pt --attack pgd --adaptive
    repsim probe --model ckpt.pt --attack pgd --train-on clean --train-on both:pgd --solver adam
    repsim probe --train train.h5 --test features.h5
    repsim probe --model ckpt.pt --attack pgd --retrain-from layer2.1 --retrain-from layer3.1
    repsim probe --model other.pt --attack pgd --out other.h5 --agree probes.h5
    """
    from repsim.cli.common import check_outputs, echo_next, write_json
    from repsim.cli.probe_tables import print_accuracies, tell_agreement
    from repsim.errors import UserError
    from repsim.plot import save_figure
    from repsim.plot.probes import probe_figure
    from repsim.probe import load_probes
    from repsim.progress import reporter
    from repsim.runtime import Runtime

    figure, agreed = out.with_suffix(".png"), out.with_suffix(".agreement.csv")
    if out == figure:
        raise UserError(
            f"--out {out} expects a name for the result, such as {out.stem}.h5; the figure goes "
            f"beside it as {figure.name}"
        )
    stored, probing = _way(ctx)
    written = [out, figure] if probing else []
    written += [agreed] if agree else []
    for path in written:
        if path != figure and path.exists() and not overwrite:
            raise UserError(f"--out {path} is there; give another name or --overwrite")
    check_outputs(*written, csv, json_file)
    results = [(path, load_probes(path)) for path in agree]
    found: dict[str, Any] = {}
    if probing:
        progress = reporter(quiet=quiet)
        settings = attack_settings(eps, norm, steps, step_size, restarts)
        shared = {
            "train_on": train_on, "adaptive": adaptive, "runtime": Runtime.of(device, precision),
            "progress": progress,
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
        save_figure(probe_figure(report.table, report.network, chance=1 / report.classes), figure)
        if not quiet:
            for note in report.notes:
                click.echo(note, err=True)
            print_accuracies(report)
        found, results = report.to_json(), [(out, report), *results]
    if agree:
        found["agreement"] = tell_agreement(results, agreed, quiet=quiet)
    write_json(json_file, found)
    if not quiet:
        click.echo(f"wrote {' and '.join(map(str, written))}")
        if probing:
            echo_next(f"repsim info {out}")


def _way(ctx: click.Context) -> tuple[bool, bool]:
    """Whether stores are probed, and whether anything is, and not only results compared.

    Raises:
        UserError: what was given makes no whole, or has no use.
    """
    from repsim.errors import UserError

    given = ctx.params
    stores = [given[name] is not None for name in ("train_store", "test_store")]
    stored, probing = any(stores), any(stores) or given["model"] is not None
    if stored and not all(stores):
        raise UserError(
            "--train and --test expect each other: a store of the training split and one of the "
            "test split; write the missing one: repsim extract --split train --out train.h5"
        )
    if not probing and not given["agree"]:
        raise UserError("probe expects --model CHECKPOINT, or --train STORE and --test STORE")
    if not probing and len(given["agree"]) < 2:
        raise UserError("--agree expects a second result, or --model CHECKPOINT to probe now")
    if stored and given["retrain_from"]:
        raise UserError("--retrain-from expects a network, not stores; give --model alone")
    for way, chosen in zip(_UNUSED, (given["retrain_from"], stored, not probing), strict=True):
        if chosen:
            _refuse_unused(ctx, way)
    return stored, probing


def _refuse_unused(ctx: click.Context, way: str) -> None:
    """A given option that is not used would be taken for one that was."""
    from repsim.errors import UserError

    source = click.core.ParameterSource.COMMANDLINE
    flags = {option.name: option.opts[0] for option in ctx.command.params}
    given = [flags[name] for name in _UNUSED[way] if ctx.get_parameter_source(name) == source]
    if given:
        raise UserError(f"{way} has no use for {', '.join(given)}; leave it out")


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
