"""Numbers, names and times in words, the same in the page, the tables and the summary."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from repsim.findings import Network, Number

MINUS = "\u2212"
# A sign of its own for every verdict: colour is never all that tells them apart.
VERDICTS = {
    "holds": ("✓", "holds"),
    "does not hold": ("✗", "fails"),
    "not resolved": ("?", "open"),
    "not run": ("–", "missing"),
}
SCHEMES = {
    "sl": "supervised",
    "scl": "supervised contrastive",
    "cl": "self-supervised contrastive",
    "rocl": "RoCL",
    "clead": "CLeAD",
    "trades": "TRADES",
}
SCENARIOS = {
    "st": "standard training",
    "at": "adversarial training",
    "partial-at": "adversarial training, then also the head",
    "full-at": "adversarial training, then end to end",
    "untrained": "untrained",
}

# The findings of `repsim.findings` in two words.
SHORT = {
    "1": "Standard training",
    "2": "Adversarial training",
    "3": "Long-range similarity",
    "4": "Across schemes",
    "5": "Training budget",
    "6": "Robust accuracy",
    "7": "Full-at against at",
    "8": "Predictions, probes",
}


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """0.412, −0.031, with a sign +0.412; – where there is none or it is not defined."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def interval(lower: float | None, upper: float | None, *, sign: bool = False) -> str:
    """[0.398, 0.426]; nothing where there is none."""
    if lower is None or upper is None or math.isnan(lower) or math.isnan(upper):
        return ""
    return f"[{number(lower, sign=sign)}, {number(upper, sign=sign)}]"


def percent(value: float | None) -> str:
    """41.2%."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def seconds(value: float | None) -> str:
    """0.4 s, 41 s, 3 min 20 s, 2 h 05 min."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(eps: float | None, *, pixels: bool = True) -> str:
    """A linf size of an attack: as k/255 where it is one, else as a decimal number."""
    if eps is None:
        return ""
    steps = eps * 255
    if pixels and abs(steps - round(steps)) < 1e-3 and round(steps) > 0:
        return f"{round(steps)}/255"
    return f"{eps:g}"


def full_name(network: Network) -> str:
    """Such as "supervised, adversarial training (8/255), seed 0"."""
    scheme = SCHEMES.get(network.scheme, network.scheme)
    scenario = SCENARIOS.get(network.scenario, network.scenario)
    if network.scenario == "untrained":
        return f"untrained, seed {network.seed}"
    eps = f" ({size(network.eps)})" if network.eps is not None else ""
    return f"{scheme}, {scenario}{eps}, seed {network.seed}"


def plural(count: int, word: str) -> str:
    """1 network, 2 networks."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def listing(words: Sequence[str]) -> str:
    """a, b and c."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def signed(one: Number) -> bool:
    """Whether a number is written with its sign: a difference, a correlation."""
    return bool(getattr(one, "signed", False)) or one.outcome is not None


def pretty(text: str) -> str:
    """A minus where a hyphen stands for one."""
    return re.sub(r"(?<![\w.])-(?=\d)|(?<= )-(?= )", MINUS, text)
