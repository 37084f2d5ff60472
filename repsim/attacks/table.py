"""The attacks by name, as typed after `--attack`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from repsim.attacks.apgd import apgd
from repsim.attacks.autoattack import autoattack
from repsim.attacks.contrastive import contrastive
from repsim.attacks.cw import cw
from repsim.attacks.deepfool import deepfool
from repsim.attacks.fab import fab
from repsim.attacks.feature import feature
from repsim.attacks.fgsm import fgsm
from repsim.attacks.instance import instance
from repsim.attacks.mim import mim
from repsim.attacks.noise import noise
from repsim.attacks.pgd import pgd
from repsim.attacks.probe import probe
from repsim.attacks.rfgsm import rfgsm
from repsim.attacks.similarity import cka_attack
from repsim.attacks.square import square

Attack = Callable[..., Tensor]

ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "r-fgsm": rfgsm,
    "pgd": pgd,
    "mim": mim,
    "apgd": apgd,
    "cw-l2": cw,
    "deepfool": deepfool,
    "fab": fab,
    "square": square,
    "autoattack": autoattack,
    "contrastive": contrastive,
    "instance": instance,
    "feature": feature,
    "probe": probe,
    "cka": cka_attack,
    "noise": noise,
}
CONTROLS = ("noise",)
# Without labels there is no success: what is found is judged by what the network says of it.
REPRESENTATION = ("contrastive", "instance", "feature", "cka")
# Their images depend on the others of the batch.
COUPLED = REPRESENTATION
# They look at an inner layer, which a folded or smoothed network does not have as it was.
INNER = (*REPRESENTATION, "probe")
# They look for the smallest perturbation, with or without a bound.
MINIMUM_NORM = ("fab", "cw-l2", "deepfool")

# The threats that RoCL's table 1 (Kim et al. 2020, arXiv 2006.07589) tests beyond the one of
# training, linf 8/255.
UNSEEN: dict[str, str] = {
    "linf-16": "pgd,norm=linf,eps=16/255",
    "l2-0.25": "pgd,norm=l2,eps=0.25",
    "l2-0.5": "pgd,norm=l2,eps=0.5",
    "l1-7.84": "pgd,norm=l1,eps=7.84",
    "l1-12": "pgd,norm=l1,eps=12",
}
# Short for an attack with settings; more can be added after a comma.
PRESETS: dict[str, str] = {
    "apgd-ce": "apgd",
    "apgd-dlr": "apgd,loss=dlr",
    "apgd-t": "apgd,loss=dlr-targeted",
    "fab-t": "fab,targets=9",
    **UNSEEN,
}
# One name for several.
GROUPS: dict[str, tuple[str, ...]] = {"unseen": tuple(UNSEEN)}
