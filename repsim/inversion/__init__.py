"""Representation inversion, and what networks share by it: STIR and inverted-image CKA.

    from repsim.inversion import invert, stir
    record = {}
    again = invert(model, images, "penultimate", record=record)  # record["distance"]
    at_given_st, st_given_at = stir(st, at, images)              # STIR(m₂|m₁), STIR(m₁|m₂)

`shared_invariances` takes any number of networks and gives every matrix with its controls.
"""

from repsim.inversion.control import noise_at_distance
from repsim.inversion.features import LOGITS, PENULTIMATE
from repsim.inversion.invert import invert, relative_distance
from repsim.inversion.shared import (
    Estimate,
    SharedInvariances,
    Value,
    inverted_cka,
    shared_invariances,
    stir,
)
from repsim.inversion.starts import STARTS, starting_images

__all__ = [
    "LOGITS",
    "PENULTIMATE",
    "STARTS",
    "Estimate",
    "SharedInvariances",
    "Value",
    "invert",
    "inverted_cka",
    "noise_at_distance",
    "relative_distance",
    "shared_invariances",
    "starting_images",
    "stir",
]
