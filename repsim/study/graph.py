"""The stages of a study, from its networks to its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from repsim.attacks import AttackSpec, parse_attacks
from repsim.files import sha256_of
from repsim.study import finish, measure
from repsim.study.ready import in_key, sources, train_settings
from repsim.study.stage import Stage, ordered
from repsim.study.study import Study
from repsim.study.training import make_network


def stages_of(study: Study) -> dict[str, Stage]:
    """All stages by name; each comes after those that it needs.

    A stage's settings hold attacks with all that they are made of, their defaults and the user's
    own code among it, and the code of the user's own architectures, which checkpoints do not hold.

    Args:
        study: the study; its data is loaded, for the fingerprints.
    """
    settings, names = study.settings, [one.name for one in study.networks]
    code = {one.name: sources(study, one) for one in study.networks}
    test = study.test_images.fingerprint
    common = {"data": test, "precision": settings.precision}
    plain = settings.to_json()
    trained = tuple(f"train-{name}" for name in names)
    shared = measure.shared_networks(study)
    own = measure.own_attack(study)
    robust = [
        spec for text in settings.evaluate.attacks for spec in parse_attacks(text, eps=study.eps)
    ]
    compare = {key: value for key, value in plain["compare"].items() if key != "shared"}
    compare["attack"] = _resolved([own])
    seen = {**common, "networks": names, **compare, **_codes(code, names)}

    def stage(name: str, needs: tuple[str, ...], about: dict[str, Any], outputs: tuple[str, ...],
              network: str | None = None, parallel: bool = False) -> Stage:  # fmt: skip
        kind = name.partition("-")[0]
        return Stage(name, kind, needs, about, outputs, f"{study.command} --stop-after {name}",
                     network, parallel)  # fmt: skip

    # A user's own networks first: what is wrong with one is found before another is trained.
    made = [
        stage(
            f"train-{one.name}", (f"train-{one.init}",) if one.init else (),
            train_settings(study, one), (one.file,), one.name,
            parallel=one.kind is not None and bool(one.kind.recipe),
        )
        for one in sorted(study.networks, key=lambda one: not one.checkpoint)
    ]  # fmt: skip
    made += [
        stage(f"evaluate-{name}", (f"train-{name}",),
              {**common, "attacks": _resolved(robust), "samples": settings.evaluate.samples,
               **in_key(code[name])},
              (f"evaluations/{name}.json",), name)
        for name in names
    ]  # fmt: skip
    made.append(stage(
        "shared", tuple(f"train-{name}" for name in shared),
        {**common, "networks": shared, "attack": compare["attack"],
         "samples": compare["samples"], **_codes(code, shared)},
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
               "test": compare["samples"], "training": study.train_images.fingerprint,
               **in_key(code[name])},
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
        {key: getattr(one, key) for key in ("name", "scheme", "scenario", "seed", "eps", "arch")}
        for one in study.networks
    ]
    made.append(stage(
        "findings", ("compare", "within", "accuracy", "agreement"),
        {"networks": about, "margin": settings.margin, "own": own.condition,
         "robust": robust[0].condition},
        ("findings.json",),
    ))  # fmt: skip
    made.append(stage(
        "report", ("findings", "compare", "within", "accuracy", "agreement"),
        {"networks": about, "about": settings.about}, ("report.html", "summary.md"),
    ))  # fmt: skip
    return ordered(made)


def _resolved(specs: Sequence[AttackSpec]) -> list[dict[str, Any]]:
    """Attacks as they will be made: all settings, the hash of the user's own code and files."""
    return [
        {**spec.to_json(), **{key: sha256_of(path) for key, path in spec.files.items()}}
        for spec in specs
    ]


def _codes(code: dict[str, dict[str, str]], names: Sequence[str]) -> dict[str, Any]:
    """The user's own code of several networks, as `in_key`."""
    return in_key({key: one for name in names for key, one in code[name].items()})


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
