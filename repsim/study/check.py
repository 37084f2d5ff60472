"""What a stage would refuse in an hour, refused before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from repsim.attacks import NORMS, AttackSpec, noise_control, parse_attacks
from repsim.data import ImageData, draw, to_float
from repsim.errors import UserError
from repsim.hooks import Layer, select_layers
from repsim.live.plan import LEAST, Plan, plan_batches
from repsim.probe import Settings as ProbeSettings
from repsim.probe.adaptive import require_adaptive
from repsim.probe.settings import trainings
from repsim.study.measure import NOISE, own_attack
from repsim.study.settings import Compare, Probe, layer_patterns
from repsim.study.shared import SHARED
from repsim.study.stage import Records
from repsim.study.study import Study
from repsim.study.training import bare_network, load_own

Layers = dict[str, list[Layer]]  # those that are compared, by network


def check_settings(study: Study) -> None:
    """Attacks, numbers of images, probes, the machine.

    Raises:
        UserError: what cannot be meant.
    """
    settings = study.settings
    study.runtime()
    own = own_attack(study)
    if own.is_control or own.files or own.condition in (NOISE, SHARED):
        raise UserError(
            "compare.attack expects an attack on the network itself, of another name than "
            f"{NOISE} and {SHARED}; got {own.text}"
        )
    _check_evaluated(settings.evaluate.attacks, own, study.eps)
    names = [one.name for one in study.networks]
    for name in settings.compare.shared:
        if name not in names:
            raise UserError(
                f"compare.shared expects networks of the study, {', '.join(names)}; got {name!r}"
            )
    for what, count, least in (
        ("evaluate.samples", settings.evaluate.samples, 1),
        ("compare.samples", settings.compare.samples, LEAST),
        ("within.samples", settings.within.samples, LEAST),
        ("compare.groups", settings.compare.groups, 2),
        ("evaluate.batch_size", settings.evaluate.batch_size, 1),
        ("compare.batch_size", settings.compare.batch_size, 1),
    ):
        if count < least:
            raise UserError(f"{what} expects at least {least}; got {count}")
    _check_probe(settings.probe, own, len(study.test_images.classes))


def _check_evaluated(texts: Sequence[str], own: AttackSpec, eps: float) -> None:
    """Attacks of a name each; one of a condition of the comparison is that condition."""
    specs = [spec for text in texts for spec in parse_attacks(text, eps=eps)]
    names = [spec.condition for spec in specs]
    if not specs or len(set(names)) < len(names):
        raise UserError(
            "evaluate.attacks expects attacks of a name each; got "
            f"{', '.join(names) or 'none'}; name them apart with as=NAME"
        )
    compared = {own.condition: own}
    if own.norm in NORMS and own.params.get("eps") is not None:
        compared[NOISE] = noise_control(own.params["eps"], own.norm)
    for spec in specs:
        for key, path in spec.files.items():
            if not Path(path).is_file():
                raise UserError(f"evaluate.attacks: {key} expects a file; there is no file {path}")
        other = compared.get(spec.condition)
        if spec.condition == SHARED or (other is not None and spec.to_json() != other.to_json()):
            theirs = "images of its own" if other is None else other.text
            raise UserError(
                f"evaluate.attacks: {spec.condition} is {spec.text}, in the comparison it is "
                f"{theirs}; name them apart with as=NAME, or make them equal"
            )


def _check_probe(probe: Probe, own: AttackSpec, classes: int) -> None:
    if "clean" not in probe.train_on:
        raise UserError(
            "probe.train_on expects clean among the conditions, whose probes are compared; got "
            f"{', '.join(probe.train_on) or 'none'}"
        )
    kinds = {"clean": "clean", NOISE: "control", own.condition: "attack", SHARED: "attack"}
    for one in trainings(probe.train_on, kinds):
        if SHARED in one.conditions:
            raise UserError(
                f"probe.train_on expects clean, {NOISE} or {own.condition}; the {SHARED} images "
                "are those of the test split"
            )
    if probe.train < 2 * classes:
        raise UserError(
            f"probe.train expects at least {2 * classes} images, two of each class; got "
            f"{probe.train}"
        )
    try:
        ProbeSettings(solver=probe.solver, seed=0, **probe.options).checked()
    except TypeError as error:
        raise UserError(f"probe.options: {error}") from error
    if probe.adaptive:
        require_adaptive([own], probe.solver, "probe.adaptive")


def check_layers(study: Study) -> tuple[Layers, list[str]]:
    """The layers that are compared, found in untrained networks, and what to know of them.

    Returns:
        Layers by network, and lines for the user.

    Raises:
        UserError: a pattern that no layer has, an architecture that does not take the images, or
            too little memory for a comparison of these networks.
    """
    few = draw(study.test_images, 8)
    compare, settings = study.settings.compare, study.settings
    seen: dict[str, list[Layer]] = {}
    found: Layers = {}
    for one in study.networks:
        key = f"{one.arch} {dict(one.arch_args)}"
        if key not in seen:
            model = bare_network(one, few).model
            images = to_float(few.images)
            for name, text in (("probe", settings.probe.layers), ("compare", compare.layers)):
                try:
                    layers = select_layers(model, images, layer_patterns(text)).layers
                except UserError as error:
                    raise UserError(f"{name}.layers, network {one.name}: {error}") from error
                if not layers:
                    raise UserError(
                        f"{name}.layers expects blocks, leaf, all or patterns; got none"
                    )
            seen[key] = layers
        found[one.name] = seen[key]
    return found, check_memory(compare, settings.within.samples, found, _conditions(study))


def _conditions(study: Study) -> int:
    """Clean, shared, own attack, and noise where the attack has a size."""
    return 3 + (own_attack(study).params.get("eps") is not None)


def check_memory(
    compare: Compare, within: int, layers: Mapping[str, Sequence[Layer]], conditions: int
) -> list[str]:
    """Refuse comparisons that their memory is too small for.

    Args:
        compare: settings of the comparison.
        within: test images of that within classes, which needs all in one Gram matrix.
        layers: those compared, by network.
        conditions: how many each network is seen under.

    Returns:
        What the user should know of the comparison.

    Raises:
        UserError: says what is needed, and what to change.
    """
    plan = plan_comparison(compare, compare.samples, layers, conditions)
    other = plan_comparison(compare, min(within, compare.samples), layers, conditions)
    if not other.whole:
        why = next(note for note in other.notes if "would need" in note).partition(": ")[2]
        raise UserError(
            f"the comparison within classes takes all images at once: {why}; raise compare.memory "
            "(bytes), or take fewer within.samples or compare.layers"
        )
    return [f"compare: {note}" for note in plan.notes]


def plan_comparison(
    compare: Compare, samples: int, layers: Mapping[str, Sequence[Layer]], conditions: int
) -> Plan:
    """How a live comparison of all networks will go.

    Args:
        compare: its settings.
        samples: test images.
        layers: those compared, by network.
        conditions: how many each network is seen under.

    Raises:
        UserError: settings under which there is none.
    """
    widths = [[math.prod(layer.shape) for layer in some] for some in layers.values()]
    count = conditions * sum(map(len, widths))
    return plan_batches(
        samples, compare.batch_size, max(widths, key=sum), count, compare.memory, None
    )


def check_own(study: Study, records: Records) -> list[str]:
    """The user's own networks, that are not in the study yet, fit it.

    Returns:
        A line for each that was trained on other data.

    Raises:
        UserError: other images or classes, no head, or weights that do not fit.
    """
    notes = []
    for one in study.networks:
        if not one.checkpoint or records.done(records.stages[f"train-{one.name}"]):
            continue
        loaded, ours = load_own(study, one)
        data = loaded.meta.get("data") if ours else None
        if data and not _same_data(data, study.train_images):
            notes.append(
                f"{one.name} was trained on {loaded.data}, whose images are as large as those of "
                f"{study.train_images.name}; its accuracies are of {study.train_images.name}"
            )
    return notes


def _same_data(data: Mapping[str, object], images: ImageData) -> bool:
    return data.get("name") == images.name or data.get("fingerprint") == images.fingerprint
