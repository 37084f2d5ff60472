"""The stages of a study, from its networks to its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repsim.study import finish, measure
from repsim.study.stage import Stage, ordered
from repsim.study.study import Study
from repsim.study.training import make_network, train_settings


def stages_of(study: Study, command: str) -> dict[str, Stage]:
    """All stages by name; each comes after those that it needs.

    Args:
        study: the study; its data is loaded, for the fingerprints.
        command: that makes all of it, to which a stage's `--stop-after` is added.
    """
    settings, names = study.settings, [one.name for one in study.networks]
    test = study.test_images.fingerprint
    common = {"data": test, "precision": settings.precision}
    plain = settings.to_json()
    trained = tuple(f"train-{name}" for name in names)
    sources = measure.shared_networks(study)
    compare = {key: value for key, value in plain["compare"].items() if key != "shared"}
    seen = {**common, "networks": names, **compare}

    def stage(name: str, needs: tuple[str, ...], about: dict[str, Any], outputs: tuple[str, ...],
              network: str | None = None, parallel: bool = False) -> Stage:  # fmt: skip
        kind = name.partition("-")[0]
        return Stage(name, kind, needs, about, outputs, f"{command} --stop-after {name}", network,
                     parallel)  # fmt: skip

    made = [
        stage(
            f"train-{one.name}", (f"train-{one.init}",) if one.init else (),
            train_settings(study, one), (one.file,), one.name,
            parallel=one.kind is not None and bool(one.kind.recipe),
        )
        for one in study.networks
    ]  # fmt: skip
    made += [
        stage(f"evaluate-{name}", (f"train-{name}",),
              {**common, "attacks": plain["evaluate"]["attacks"],
               "samples": settings.evaluate.samples},
              (f"evaluations/{name}.json",), name)
        for name in names
    ]  # fmt: skip
    made.append(stage(
        "shared", tuple(f"train-{name}" for name in sources),
        {**common, "networks": sources, "attack": compare["attack"],
         "samples": compare["samples"]},
        (measure.SHARED_FILE,),
    ))  # fmt: skip
    made.append(stage("compare", (*trained, "shared"), seen, ("similarity.h5", "predictions.csv"),
                      parallel=True))  # fmt: skip
    # After `compare`, whose Gram matrices it uses again.
    made.append(stage("within", (*trained, "shared", "compare"), {**seen, **plain["within"]},
                      ("within.h5",)))  # fmt: skip
    probed = {key: value for key, value in plain["probe"].items() if key != "options"}
    made += [
        stage(f"probe-{name}", (f"train-{name}", "shared"),
              {**common, **probed, **plain["probe"]["options"], "attack": compare["attack"],
               "test": compare["samples"], "training": study.train_images.fingerprint},
              (f"probes/{name}.h5",), name)
        for name in names
    ]  # fmt: skip
    made.append(stage(
        "accuracy", ("compare", *(f"evaluate-{name}" for name in names)), {"networks": names},
        ("accuracy.csv",),
    ))  # fmt: skip
    made.append(stage(
        "agreement", ("compare", *(f"probe-{name}" for name in names)), {"networks": names},
        ("agreement.csv", "probes.csv", "probe_predictions.csv"),
    ))  # fmt: skip
    about = [
        {key: getattr(one, key) for key in ("name", "scheme", "scenario", "seed", "eps")}
        for one in study.networks
    ]
    made.append(stage(
        "findings", ("compare", "within", "accuracy", "agreement"),
        {"networks": about, "margin": settings.margin, "own": compare["attack"],
         "robust": plain["evaluate"]["attacks"]},
        ("findings.json",),
    ))  # fmt: skip
    made.append(stage(
        "report", ("findings", "compare", "within", "accuracy", "agreement"),
        {"networks": about, "about": settings.about}, ("report.html", "summary.md"),
    ))  # fmt: skip
    return ordered(made)


def work(study: Study, stage: Stage) -> dict[str, Any]:
    """Do a stage's work; returns plain values for its record."""
    if stage.network is not None:
        if stage.kind == "train":
            return make_network(study, study.network(stage.network))
        one: Callable[[Study, str], dict[str, Any]] = {
            "evaluate": measure.evaluation, "probe": measure.probes,
        }[stage.kind]  # fmt: skip
        return one(study, stage.network)
    whole: Callable[[Study], dict[str, Any]] = {
        "shared": measure.shared_images,
        "compare": measure.comparison,
        "within": measure.within_classes,
        "accuracy": measure.accuracies,
        "agreement": measure.agreements,
        "findings": finish.find,
        "report": finish.report,
    }[stage.kind]
    return whole(study)
