"""Attacks: functions (model, inputs, labels, *, eps, ...) -> attacked inputs, and their names."""

from repsim.attacks.apgd import apgd, auto_ascend
from repsim.attacks.ascend import ascend
from repsim.attacks.autoattack import autoattack
from repsim.attacks.ball import NORMS, perturbation_norm
from repsim.attacks.contrastive import contrastive
from repsim.attacks.cw import cw
from repsim.attacks.deepfool import deepfool
from repsim.attacks.fab import fab
from repsim.attacks.fast import faster
from repsim.attacks.feature import feature
from repsim.attacks.fgsm import fgsm
from repsim.attacks.gradient import frozen
from repsim.attacks.instance import instance
from repsim.attacks.mim import mim
from repsim.attacks.noise import noise
from repsim.attacks.pgd import pgd
from repsim.attacks.probe import probe
from repsim.attacks.rfgsm import rfgsm
from repsim.attacks.run import inside, only_fooled, run_attack
from repsim.attacks.similarity import cka_attack
from repsim.attacks.spec import (
    AttackSpec,
    noise_control,
    parse_attack,
    parse_attacks,
    parse_number,
)
from repsim.attacks.square import square
from repsim.attacks.table import ATTACKS

__all__ = [
    "ATTACKS",
    "NORMS",
    "AttackSpec",
    "apgd",
    "ascend",
    "auto_ascend",
    "autoattack",
    "cka_attack",
    "contrastive",
    "cw",
    "deepfool",
    "fab",
    "faster",
    "feature",
    "fgsm",
    "frozen",
    "inside",
    "instance",
    "mim",
    "noise",
    "noise_control",
    "only_fooled",
    "parse_attack",
    "parse_attacks",
    "parse_number",
    "perturbation_norm",
    "pgd",
    "probe",
    "rfgsm",
    "run_attack",
    "square",
]
