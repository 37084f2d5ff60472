"""Attacks: functions (model, inputs, labels, *, eps, ...) -> attacked inputs, and their names."""

from repsim.attacks.ball import perturbation_norm
from repsim.attacks.fgsm import fgsm
from repsim.attacks.gradient import frozen
from repsim.attacks.noise import noise
from repsim.attacks.pgd import pgd
from repsim.attacks.spec import (
    ATTACKS,
    AttackSpec,
    noise_control,
    parse_attack,
    parse_number,
    run_attack,
)

__all__ = [
    "ATTACKS",
    "AttackSpec",
    "fgsm",
    "frozen",
    "noise",
    "noise_control",
    "parse_attack",
    "parse_number",
    "perturbation_norm",
    "pgd",
    "run_attack",
]
