"""The stages that run trained networks: accuracies, attacked images, similarities, probes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from repsim import distributed
from repsim.attack_files import bind
from repsim.attacks import AttackSpec, parse_attack, parse_attacks
from repsim.checkpoint import LoadedModel
from repsim.compare import compare_all
from repsim.data import ImageData, draw
from repsim.evaluate import accuracy_interval, evaluate
from repsim.live import GramCache, LiveGrams, live_grams
from repsim.probe import agreement, load_probes, probe_live
from repsim.probe.agreement import kappa
from repsim.result.pairs import save_pairs
from repsim.study.settings import UNTRAINED, layer_patterns
from repsim.study.shared import SHARED, make_shared, shared_attack
from repsim.study.study import Study

SEED = 0  # of the attacks' draws: networks of different seeds see the same ones
SHARED_FILE = "shared.h5"
NOISE = "noise"  # the control that a live comparison adds
PROBED_LAYERS = 20  # whose probes' predictions are kept image by image: 145 would be half a GB


def own_attack(study: Study) -> AttackSpec:
    """The attack that is made on each network, not yet bound to one."""
    return parse_attack(study.settings.compare.attack, eps=study.eps)


def shared_networks(study: Study) -> list[str]:
    """Names of the networks that the shared attack is made on.

    Those of the settings, else one of each scheme, scenario st or at, and seed: none of those that
    are compared for universality has a set that was made without it.
    """
    if study.settings.compare.shared:
        return list(study.settings.compare.shared)
    first: dict[tuple[str, str, int], str] = {}
    for one in study.networks:
        if one.scenario in ("st", "at"):
            first.setdefault((one.scheme, one.scenario, one.seed), one.name)
    trained = [one.name for one in study.networks if one.scenario != UNTRAINED]
    return list(first.values()) or trained[:1] or [study.networks[0].name]


def evaluation(study: Study, name: str) -> dict[str, Any]:
    """The stage `evaluate`: a network's accuracies, clean and under each attack."""
    settings, loaded, runtime = study.settings.evaluate, study.load(name), study.runtime()
    specs = [
        bind(spec, loaded, runtime)
        for text in settings.attacks
        for spec in parse_attacks(text, eps=study.eps)
    ]
    found = evaluate(
        loaded, study.test(settings.samples), specs, batch_size=settings.batch_size,
        runtime=runtime, seed=SEED, progress=study.progress,
    ).summary()  # fmt: skip
    found.pop("images_per_second")  # of this run; the rest is the same in every run
    study.write_json(f"evaluations/{name}.json", found)
    return {}


def shared_images(study: Study) -> dict[str, Any]:
    """The stage `shared`: the one attacked set."""
    settings, names = study.settings.compare, shared_networks(study)
    make_shared(
        [study.load(name) for name in names], study.test(settings.samples), own_attack(study),
        study.path(SHARED_FILE), batch_size=settings.batch_size, runtime=study.runtime(),
        seed=SEED, progress=study.progress,
    )  # fmt: skip
    return {"made_on": names}


def _attacks(study: Study, loaded: LoadedModel, shared: AttackSpec) -> list[AttackSpec]:
    return [bind(own_attack(study), loaded, study.runtime()), shared]


def _grams(study: Study, data: ImageData, *, whole: bool = False) -> LiveGrams:
    """All layers × conditions × networks; what an earlier run left of them is taken."""
    settings = study.settings.compare
    networks = [study.load(one.name) for one in study.networks]
    shared = shared_attack(study.folder / SHARED_FILE)
    return live_grams(
        networks, data, [_attacks(study, loaded, shared) for loaded in networks],
        layers=layer_patterns(settings.layers), groups=settings.groups,
        batch_size=settings.batch_size, memory=settings.memory,
        cache=GramCache(study.folder / "grams"), seed=SEED,
        whole=whole, runtime=study.runtime(), progress=study.progress,
    )  # fmt: skip


def comparison(study: Study) -> dict[str, Any]:
    """The stage `compare`: all against all, and what each network said of each image."""
    settings = study.settings.compare
    data = study.test(settings.samples)
    grams = _grams(study, data)
    if not distributed.is_main():
        return {}
    everything = grams.minibatch or compare_all(
        grams.representations, groups=settings.groups, memory=settings.memory,
        estimator=grams.estimator, ids=data.ids, device=study.runtime().device,
        progress=study.progress,
    )  # fmt: skip
    save_pairs(
        study.path("similarity.h5"), everything, provenance={"live": grams.provenance}
    )  # fmt: skip
    table = pd.DataFrame({
        "index": data.index.numpy(), "label": data.labels.numpy(),
        **{f"{name}:{condition}": found
           for (name, condition), found in grams.predictions.items()},
    })  # fmt: skip
    with study.writing("predictions.csv") as beside:
        table.to_csv(beside, index=False)
    return {
        "estimator": grams.estimator, "notes": grams.notes, "grams_made": grams.made,
        "representations": len(everything.keys), "grams_reused": grams.reused,
    }  # fmt: skip


def within_classes(study: Study) -> dict[str, Any]:
    """The stage `within`: the same within classes."""
    settings, compare = study.settings.within, study.settings.compare
    data = study.test(min(settings.samples, compare.samples))
    grams = _grams(study, data, whole=True)
    if not distributed.is_main():
        return {}
    everything = compare_all(
        grams.representations, within=data.labels.numpy(), groups=compare.groups,
        memory=compare.memory, ids=data.ids, device=study.runtime().device,
        progress=study.progress,
    )  # fmt: skip
    save_pairs(study.path("within.h5"), everything, provenance={"live": grams.provenance})
    return {"grams_made": grams.made, "grams_reused": grams.reused}


def probes(study: Study, name: str) -> dict[str, Any]:
    """The stage `probe`: a probe of every layer of a network."""
    settings, loaded = study.settings.probe, study.load(name)
    shared = shared_attack(study.folder / SHARED_FILE)
    report = probe_live(
        loaded, draw(study.train_images, settings.train),
        study.test(study.settings.compare.samples), layers=layer_patterns(settings.layers),
        attacks=_attacks(study, loaded, shared), train_on=settings.train_on,
        adaptive=settings.adaptive, solver=settings.solver, runtime=study.runtime(), seed=SEED,
        progress=study.progress, **settings.options,
    )  # fmt: skip
    report.save(study.path(f"probes/{name}.h5"))
    return {}


def accuracies(study: Study) -> dict[str, Any]:
    """The table of accuracies: those of `evaluate`, and of the control and the shared images."""
    rows = []
    predictions = pd.read_csv(study.folder / "predictions.csv")
    own = own_attack(study).condition
    for one in study.networks:
        found = json.loads((study.folder / f"evaluations/{one.name}.json").read_text("utf-8"))
        values = {"clean": found["clean_accuracy"], **found["robust_accuracy"]}
        ends = {"clean": found["clean_accuracy_ci"], **found["robust_accuracy_ci"]}
        if len(found["attacks"]) < 2:
            values.pop("worst", None)
        rows += [
            _row(one.name, key, value, ends[key], found["samples"]) for key, value in values.items()
        ]
        for condition in (NOISE, SHARED):
            column = f"{one.name}:{condition}"
            if condition in values or column not in predictions or condition == own:
                continue
            seen = predictions[predictions[column] >= 0]
            right = int((seen[column] == seen["label"]).sum())
            rows.append(_row(
                one.name, condition, right / len(seen), accuracy_interval(right, len(seen)),
                len(seen),
            ))  # fmt: skip
    with study.writing("accuracy.csv") as beside:
        pd.DataFrame(rows).to_csv(beside, index=False)
    return {}


def _row(
    network: str, condition: str, value: float, ends: Sequence[float], n: int
) -> dict[str, Any]:
    return {"network": network, "condition": condition, "accuracy": value, "lower": ends[0],
            "upper": ends[1], "samples": n}  # fmt: skip


def agreements(study: Study) -> dict[str, Any]:
    """How often two networks say the same, and two probes of the same layer."""
    predictions = pd.read_csv(study.folder / "predictions.csv")
    names = [one.name for one in study.networks]
    columns = [str(column) for column in predictions]
    conditions = list(dict.fromkeys(c.partition(":")[2] for c in columns if ":" in c))
    rows: list[dict[str, Any]] = []
    reports = {name: load_probes(study.folder / f"probes/{name}.h5") for name in names}
    tables = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            for condition in conditions:
                x, y = (predictions[f"{name}:{condition}"].to_numpy() for name in (a, b))
                seen = (x >= 0) & (y >= 0)
                x, y = x[seen], y[seen]
                if not len(x):
                    continue
                same = int((x == y).sum())
                lower, upper = accuracy_interval(same, len(x))
                rows.append({
                    "a": a, "b": b, "what": "prediction", "layer": "", "condition": condition,
                    "agreement": same / len(x), "lower": lower, "upper": upper,
                    "kappa": kappa(x, y), "samples": len(x), "train": "", "attack": "",
                })  # fmt: skip
            tables.append(_probes_agree(reports[a], reports[b]))
    everything = pd.concat([pd.DataFrame(rows), *tables], ignore_index=True)
    with study.writing("agreement.csv") as beside:
        everything.to_csv(beside, index=False)
    with study.writing("probes.csv") as beside:
        pd.concat([report.table for report in reports.values()]).to_csv(beside, index=False)
    with study.writing("probe_predictions.csv") as beside:
        _probes_said(reports).to_csv(beside, index=False)
    return {}


def _probes_said(reports: dict[str, Any]) -> pd.DataFrame:
    """What the probes said of each image: label, and a column LAYER|NETWORK:CONDITION each.

    Of all layers; of more than `PROBED_LAYERS` every second, third, ... from the last one back.
    """
    labels = next(iter(reports.values())).labels
    columns: dict[str, Any] = {}
    for name, report in reports.items():
        kept = report.layers[:: -len(report.layers) // PROBED_LAYERS]
        columns |= {
            f"{layer}|{name}:{test}": said
            for (layer, train, test, attack), said in report.predictions.items()
            if layer in kept and train == "clean" and attack != "adaptive"
        }
    return pd.DataFrame({"label": labels, **columns})


def _probes_agree(a: Any, b: Any) -> pd.DataFrame:
    """Rows of the same layer, of probes trained on clean images, not attacked themselves."""
    if not {key[0] for key in a.predictions} & {key[0] for key in b.predictions}:
        return pd.DataFrame()  # architectures without a layer of the same name
    found = agreement(a, b)
    found = found[(found["train"] == "clean") & (found["attack"] != "adaptive")]
    found = found.rename(columns={"layer_a": "layer", "test": "condition"})
    return found.drop(columns="layer_b").assign(what="probe")
