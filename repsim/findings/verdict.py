"""The rule that turns differences into a verdict.

What it says of a difference was written before any number was looked at. `hardly`, `joint`, and the
doubts about definitions and about few images came later, in a review of a first small study.

A difference is taken so that the claim makes it positive. By its 95% interval over images it is

- within the margin, where the whole interval lies between -margin and +margin: too small to matter,
  whatever its sign, also where the interval excludes 0;
- the other way, where the interval lies below 0;
- as claimed, where the interval lies above 0 and the difference is larger than the spread of seeds;
- else open: the interval includes 0, or the difference is no larger than the spread of seeds, or
  there is no interval or no second seed; also where two definitions have opposite signs (finding 3)
  and where there are too few images (finding 8).

A claim that something hardly happens (`hardly`) is as claimed where the whole interval lies below
+margin, the other way where it lies above it, and else open.

The claim holds if every difference in every scheme is as claimed. It does not hold if a single one
goes the other way or is within the margin. Else it is not resolved. A claim of several parts holds
if all of them do, and does not if one of them does not (`joint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repsim.findings.finding import FAILS, HOLDS, NOT_RUN, OPEN
from repsim.findings.number import Number

MARGIN = 0.02

AS_CLAIMED, OTHER_WAY, NOTHING = "as claimed", "the other way", "within the margin"
UNSURE, WITHIN_SEEDS = "interval includes 0", "no larger than the spread of seeds"
NO_INTERVAL, ONE_SEED = "no interval", "no second seed"
ASTRIDE = "interval includes the margin"
OPPOSED = "two definitions of opposite signs"
TOO_FEW = "too few images that both get wrong"
# Doubt of the data before doubt that only another seed or interval removes.
DOUBTS = (UNSURE, ASTRIDE, OPPOSED, WITHIN_SEEDS, TOO_FEW, ONE_SEED, NO_INTERVAL)
OUTCOMES = (AS_CLAIMED, OTHER_WAY, NOTHING, *DOUBTS)


def outcome(
    value: float,
    lower: float | None,
    upper: float | None,
    spread: float | None,
    margin: float = MARGIN,
) -> str:
    """What a difference says by itself.

    Args:
        value: positive as claimed.
        lower, upper: its 95% interval over images; None where there is none.
        spread: the range over seeds; None where there is one seed.
        margin: differences within ± this mean nothing.
    """
    if lower is None or upper is None:
        return NO_INTERVAL
    if -margin <= lower and upper <= margin:
        return NOTHING
    if upper < 0:
        return OTHER_WAY
    if lower <= 0:
        return UNSURE
    if spread is None:
        return ONE_SEED
    return AS_CLAIMED if value > spread else WITHIN_SEEDS


def hardly(lower: float | None, upper: float | None, margin: float = MARGIN) -> str:
    """What a difference says to the claim that it is below 0 or within the margin.

    Args:
        lower, upper: its 95% interval over images; None where there is none.
        margin: see `outcome`.
    """
    if lower is None or upper is None:
        return NO_INTERVAL
    if upper <= margin:
        return AS_CLAIMED
    return OTHER_WAY if lower > margin else ASTRIDE


def verdict(differences: Sequence[Number], held: str = "") -> tuple[str, str]:
    """The verdict, and the reason with what decides it.

    Args:
        differences: of one claim, each with its outcome.
        held: the reason where the claim holds; by default the difference that is nearest to the
            spread of seeds.
    """
    if not differences:
        return NOT_RUN, "nothing to compare"
    against = [one for one in differences if one.outcome in (OTHER_WAY, NOTHING)]
    unsure = [one for one in differences if one.outcome not in (AS_CLAIMED, OTHER_WAY, NOTHING)]
    if against:
        worst = min(against, key=_against)
        return FAILS, f"{_decides(worst, against)}{_supported(differences)}"
    if unsure:
        first = min(unsure, key=_doubt)
        return OPEN, f"{_decides(first, unsure)}{_supported(differences)}"
    if held:
        return HOLDS, held
    weakest = min(differences, key=lambda one: one.value - (one.spread or 0.0))
    where = ", ".join(_schemes(differences))
    return HOLDS, (
        f"All {len(differences)} differences are as claimed in {where or 'all networks'}; the "
        f"weakest, {_about(weakest)}, is larger than the spread of seeds ({weakest.spread:.3f})"
    )


def joint(parts: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """The verdict of a claim of several parts, with that of each in the reason.

    Args:
        parts: verdict and reason of each, by what it claims.
    """
    said = [one for one, _ in parts.values()]
    whole = FAILS if FAILS in said else HOLDS if set(said) == {HOLDS} else OPEN
    return whole, ". ".join(f"{name}: {one}; {why}" for name, (one, why) in parts.items())


def by_part(differences: Sequence[Number]) -> list[str]:
    """Of a claim of several parts a sentence each: what every scheme says."""
    keys = list(dict.fromkeys(one.key for one in differences))
    told = []
    for key in keys if len(keys) > 1 else []:
        these = [one for one in differences if one.key == key]
        places = {
            what: [one.scheme for one in these if one.outcome == what and one.scheme]
            for what in dict.fromkeys(one.outcome or "" for one in these)
        }
        said = "; ".join(
            f"{what} in {', '.join(where)}" if where else what for what, where in places.items()
        )
        told.append(f"{these[0].label[:1].upper()}{these[0].label[1:]}: {said}.")
    return told


def _against(one: Number) -> tuple[bool, float]:
    """What goes the other way, the furthest first, before what is nothing at all."""
    nothing = one.outcome == NOTHING
    return nothing, one.value if nothing else -abs(one.value)


def _doubt(one: Number) -> tuple[int, float]:
    return DOUBTS.index(one.outcome or NO_INTERVAL), one.value


def _decides(one: Number, such: Sequence[Number]) -> str:
    """The sentence of the difference that decides, and in which schemes there are more."""
    what = one.outcome or ""
    if one.outcome == WITHIN_SEEDS and one.spread is not None:
        what += f" ({one.spread:.3f})"
    if one.outcome == OTHER_WAY and one.spread is not None and abs(one.value) <= one.spread:
        what += f", though no further than the spread of seeds ({one.spread:.3f})"
    if one.outcome == NOTHING and (one.lower or 0.0) * (one.upper or 0.0) > 0:
        what += ", though the interval excludes 0"
    more = len(such) - 1
    places = ", ".join(_schemes(such))
    rest = f" ({more} more like it{f', in {places}' if places else ''})"
    who = f"{one.scheme} decides: " if one.scheme else ""
    return f"{who}{one.label} = {one.text()}: {what}{rest if more else ''}"


def _about(one: Number) -> str:
    return f"{one.label}{f' in {one.scheme}' if one.scheme else ''} = {one.text()}"


def _supported(differences: Sequence[Number]) -> str:
    """In which schemes everything is as claimed."""
    doubtful = {one.scheme for one in differences if one.outcome != AS_CLAIMED}
    good = [scheme for scheme in _schemes(differences) if scheme not in doubtful]
    return f"; as claimed throughout in {', '.join(good)}" if good else ""


def _schemes(numbers: Sequence[Number]) -> list[str]:
    return list(dict.fromkeys(one.scheme for one in numbers if one.scheme))
