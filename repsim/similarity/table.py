"""All measures by name, and a measure from what is typed after `--measure`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from repsim.errors import UserError
from repsim.registry import near, resolve
from repsim.similarity.canonical import CCA, CCAR2, PWCCA, SVCCA
from repsim.similarity.dissimilarity import RSA, RSACosine, RSASpearman
from repsim.similarity.distances import DebiasedDistanceCorrelation, DistanceCorrelation
from repsim.similarity.measure import CKA, Measure
from repsim.similarity.neighbours import CKNNA, Jaccard, MutualKNN
from repsim.similarity.orthogonal import AngularProcrustes, Procrustes
from repsim.similarity.predictions import Disagreement, JensenShannon
from repsim.similarity.prepared import PreparedMeasure
from repsim.similarity.regression import LinearRegression

_PREPARED: tuple[PreparedMeasure[Any, Any], ...] = (
    CCA(), CCAR2(), SVCCA(), PWCCA(), Procrustes(), AngularProcrustes(), LinearRegression(),
    RSA(), RSASpearman(), RSACosine(), MutualKNN(), Jaccard(), CKNNA(),
    DistanceCorrelation(), DebiasedDistanceCorrelation(), Disagreement(), JensenShannon(),
)  # fmt: skip

KNOWN: dict[str, CKA | PreparedMeasure[Any, Any]] = {
    "cka": CKA(),
    **{measure.name: measure for measure in _PREPARED},
}
MEASURES: dict[str, Measure] = dict(KNOWN)


def parse_measure(text: str) -> Measure | Callable[..., Any]:
    """`NAME`, `NAME,key=value,...`, or the user's own `module:object` or `file.py:object`.

    Args:
        text: for example `procrustes`, `svcca,variance=0.9` or `mutual-knn,k=5,metric=euclidean`.

    Returns:
        A measure, or whatever the user's object is.

    Raises:
        UserError: unknown name, setting or value, or no such object.
    """
    name, *settings = [part.strip() for part in text.split(",")]
    if name not in KNOWN:
        found: Measure | Callable[..., Any] = resolve(text, MEASURES, kind="measure")
        return found
    measure = KNOWN[name]
    return replace(measure, **_settings(name, measure, settings))


def needs(measure: object) -> str:
    """What a measure, by name or object, is computed from; "activations" of the user's own."""
    if isinstance(measure, str):
        measure = KNOWN.get(measure.partition(",")[0].strip())
    declaration = getattr(measure, "declaration", None)
    return getattr(declaration, "needs", "activations")


def _settings(
    name: str, measure: CKA | PreparedMeasure[Any, Any], settings: Sequence[str]
) -> dict[str, Any]:
    known = {field.name: field.default for field in fields(measure)}
    given: dict[str, Any] = {}
    for setting in settings:
        key, _, value = (part.strip() for part in setting.partition("="))
        if not key or not value:
            raise UserError(f"--measure {name}: expected key=value after the name; got {setting!r}")
        if key in given:
            raise UserError(f"--measure {name}: expected {key} once; got it twice")
        if key not in known:
            takes = ", ".join(known) or "no settings"
            close = f"; near: {near(key, known)}" if known else ""
            raise UserError(f"--measure {name} takes {takes}; got {key!r}{close}")
        given[key] = _convert(f"--measure {name}: {key}", value, known[key])
    return given


def _convert(what: str, text: str, default: Any) -> Any:
    """The value in the type of the setting's default; where there is none, a whole number."""
    if isinstance(default, str):
        return text
    kind, word = (float, "a number") if isinstance(default, float) else (int, "a whole number")
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{what} expects {word}; got {text!r}")
    return value
