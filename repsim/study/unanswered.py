"""Which findings the networks of a study leave without an answer, known before any is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from repsim.compare import AllPairs
from repsim.findings import Evidence, findings
from repsim.findings.finding import NOT_RUN
from repsim.hooks import Layer
from repsim.similarity import Pairs
from repsim.study.finish import networks_of, robust_condition
from repsim.study.measure import NOISE, own_attack
from repsim.study.shared import SHARED
from repsim.study.study import Study

_LAYERS, _IMAGES, _GROUPS = 3, 8, 2  # as few as every number is defined with


def unanswered(study: Study, layers: Mapping[str, Sequence[Layer]]) -> list[str]:
    """A line for each finding that these networks do not allow; none where all can be made.

    The findings are made of invented similarities and predictions of the same networks: what is
    "not run" then will not be run of the real ones either, and says what it needs.

    Args:
        study: the study.
        layers: those compared, by network.

    Raises:
        UserError: networks that findings refuse.
    """
    return [
        f"finding {one.key} will not be run: {one.reason}"
        for one in findings(_invented(study, layers))
        if one.verdict == NOT_RUN
    ]


def _invented(study: Study, layers: Mapping[str, Sequence[Layer]]) -> Evidence:
    random = np.random.default_rng(0)
    own = own_attack(study).condition
    conditions = ("clean", NOISE, own, SHARED)
    names = [one.name for one in study.networks]
    sides = [f"{name}:{condition}" for name in names for condition in conditions]
    keys = [
        (name, condition, layer) for name in names for condition in conditions
        for layer in _few(layers[name])
    ]  # fmt: skip
    images = random.integers(0, 2, (_IMAGES, len(sides) + 1))
    predictions = pd.DataFrame(images, columns=["label", *sides])
    last = _few(layers[names[0]])[-1]
    robust = robust_condition(study)
    return Evidence(
        networks=networks_of(study),
        similarity=_pairs(keys, random),
        own=own,
        shared=SHARED,
        within=_pairs(keys, random),
        accuracy=pd.DataFrame([
            {"network": name, "condition": condition, "accuracy": value, "lower": 0.0,
             "upper": 1.0, "samples": _IMAGES}
            for name, value in zip(names, random.random(len(names)), strict=True)
            for condition in dict.fromkeys((*conditions, robust))
        ]),
        robust=robust,
        predictions=predictions,
        probe_predictions=predictions.rename(columns=lambda name: f"{last}|{name}" if ":" in name
                                             else name),
    )  # fmt: skip


def _few(layers: Sequence[Layer]) -> list[str]:
    """Some names that are equal for networks whose layers all are."""
    whole = " ".join(layer.name for layer in layers)
    return [f"{i} of {whole}" for i in range(_LAYERS)]


def _pairs(keys: list[tuple[str, str, str]], random: np.random.Generator) -> AllPairs:
    value = random.random((len(keys), len(keys)))
    value = (value + value.T) / 2
    np.fill_diagonal(value, 1.0)
    replicates = value + 0.01 * random.standard_normal((_GROUPS, 1, 1))
    return AllPairs(keys, _IMAGES, "cka", Pairs(value, replicates, np.full(_GROUPS, _IMAGES // 2)))
