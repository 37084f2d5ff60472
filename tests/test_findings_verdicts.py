"""Verdicts where the truth is known: planted effects, planted nulls, every branch of the rule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from findings_reference import (
    EPS,
    LAYERS,
    Truth,
    accuracy_of,
    networks_of,
    planted,
    random_pairs,
    said_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student

from repsim.findings import Evidence, Finding, Network, Number, findings
from repsim.findings.adversarial import adversarial
from repsim.findings.again import again
from repsim.findings.agreements import Predictions
from repsim.findings.budgets import budgets
from repsim.findings.cross_scheme import cross_scheme
from repsim.findings.desk import Desk
from repsim.findings.full_at import full_at
from repsim.findings.long_range import long_range
from repsim.findings.number import Number as OneNumber
from repsim.findings.predictions import predictions
from repsim.findings.ranks import ranks
from repsim.findings.standard import standard
from repsim.findings.verdict import (
    AS_CLAIMED,
    ASTRIDE,
    NO_INTERVAL,
    NOTHING,
    ONE_SEED,
    OPPOSED,
    OTHER_WAY,
    OUTCOMES,
    TOO_FEW,
    UNSURE,
    WITHIN_SEEDS,
    hardly,
    joint,
    outcome,
    verdict,
)
from repsim.probe.report import ProbeReport
from repsim.study.finish import _reach
from repsim.study.measure import _probes_said
from repsim.study.networks import preset_networks
from repsim.study.settings import load_preset
from repsim.study.study import Study

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "not resolved", "not run"
SCHEMES = ("sl", "scl", "cl")

# The rule.


@pytest.mark.parametrize(
    ("value", "lower", "upper", "spread", "expected"),
    [
        (0.30, 0.25, 0.35, 0.10, AS_CLAIMED),
        (0.30, 0.25, 0.35, 0.30, WITHIN_SEEDS),
        (0.30, 0.25, 0.35, None, ONE_SEED),
        (0.30, -0.01, 0.61, 0.10, UNSURE),
        (0.30, 0.00, 0.60, 0.10, UNSURE),
        (-0.30, -0.35, -0.25, 0.10, OTHER_WAY),
        (-0.30, -0.35, -0.25, None, OTHER_WAY),
        (-0.30, -0.61, 0.01, 0.10, UNSURE),
        (0.00, -0.02, 0.02, 0.10, NOTHING),
        (0.00, -0.02, 0.0201, 0.10, UNSURE),
        # Too small to matter, whatever its sign and however sure.
        (0.01, 0.009, 0.011, 0.001, NOTHING),
        (-0.01, -0.011, -0.009, 0.001, NOTHING),
        (0.30, None, None, 0.10, NO_INTERVAL),
    ],
)
def test_every_branch_of_the_rule(
    value: float, lower: float | None, upper: float | None, spread: float | None, expected: str
) -> None:
    assert outcome(value, lower, upper, spread, 0.02) == expected


@given(st.floats(-1, 1), st.floats(0, 0.5), st.none() | st.floats(0, 0.5), st.floats(0, 0.1))
@settings(max_examples=300, deadline=None)
def test_turning_the_claim_round_turns_the_outcome_round(
    value: float, half: float, spread: float | None, margin: float
) -> None:
    ours = outcome(value, value - half, value + half, spread, margin)
    theirs = outcome(-value, -value - half, -value + half, spread, margin)
    assert ours in OUTCOMES
    assert (ours == NOTHING) == (theirs == NOTHING)
    if ours in (AS_CLAIMED, WITHIN_SEEDS, ONE_SEED):
        assert theirs == OTHER_WAY
    if ours == UNSURE:
        # Bounds at 0 are not excluded, and the rule is not symmetric there.
        assert theirs == UNSURE or half in (value, -value)


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (-0.30, -0.20, AS_CLAIMED),
        (-0.30, 0.02, AS_CLAIMED),
        (0.005, 0.015, AS_CLAIMED),
        (-0.30, 0.0201, ASTRIDE),
        (0.01, 0.03, ASTRIDE),
        (0.02, 0.03, ASTRIDE),
        (0.0201, 0.03, OTHER_WAY),
        (None, None, NO_INTERVAL),
    ],
)
def test_what_is_said_to_hardly_happen(
    lower: float | None, upper: float | None, expected: str
) -> None:
    assert hardly(lower, upper, 0.02) == expected


def test_a_claim_of_two_parts_holds_if_both_do() -> None:
    good, bad, doubt = (HOLDS, "a"), (FAILS, "b"), (OPEN, "c")
    assert joint({"One": good, "Two": good}) == (HOLDS, "One: holds; a. Two: holds; a")
    assert joint({"One": doubt, "Two": bad})[0] == FAILS
    assert joint({"One": good, "Two": doubt})[0] == OPEN
    assert joint({"One": good, "Two": verdict([])}) == (
        OPEN, "One: holds; a. Two: not run; nothing to compare"
    )  # fmt: skip


def number(scheme: str, value: float, what: str, spread: float | None = 0.01) -> Number:
    return OneNumber(
        "key", "the difference", value, value - 0.01, value + 0.01, scheme=scheme, spread=spread,
        signed=True, outcome=what,
    )  # fmt: skip


def test_the_verdict_is_that_of_every_scheme() -> None:
    good = [number("sl", 0.3, AS_CLAIMED), number("scl", 0.2, AS_CLAIMED, 0.15)]
    said, reason = verdict(good)
    assert said == HOLDS
    assert "weakest, the difference in scl = +0.200 [+0.190, +0.210]" in reason
    for what, expected in (
        (OTHER_WAY, FAILS), (NOTHING, FAILS), (UNSURE, OPEN), (WITHIN_SEEDS, OPEN),
        (ONE_SEED, OPEN), (NO_INTERVAL, OPEN), (ASTRIDE, OPEN), (OPPOSED, OPEN), (TOO_FEW, OPEN),
    ):  # fmt: skip
        said, reason = verdict([*good, number("cl", -0.1, what)])
        assert said == expected
        assert reason.startswith("cl decides: the difference = -0.100 [-0.110, -0.090]: ")
        assert what in reason
        assert reason.endswith("as claimed throughout in sl, scl")
    # One scheme against it decides, whatever is open elsewhere.
    said, reason = verdict([number("sl", 0.0, UNSURE), number("cl", 0.0, NOTHING)])
    assert (said, reason.split()[0]) == (FAILS, "cl")
    # The other way before nothing at all; doubt of the data before want of seeds.
    said, reason = verdict([number("sl", 0.0, NOTHING), number("cl", -0.1, OTHER_WAY, 0.2)])
    assert reason.startswith("cl decides")
    assert "though no further than the spread of seeds (0.200)" in reason
    assert "(1 more like it, in sl, cl)" in reason
    said, reason = verdict([number("sl", -0.015, NOTHING), number("cl", -0.012, OTHER_WAY)])
    assert reason.startswith("cl decides")
    said, reason = verdict([number("sl", 0.1, ONE_SEED), number("cl", 0.4, UNSURE)])
    assert reason.startswith("cl decides")
    assert verdict([])[0] == NOT_RUN
    # Within the margin is said, also where the interval excludes 0.
    said, reason = verdict([number("sl", 0.015, NOTHING)])
    assert reason.endswith(": within the margin, though the interval excludes 0")
    assert verdict([number("sl", 0.005, NOTHING)])[1].endswith(": within the margin")
    # What goes furthest the other way, whatever its sign.
    said, reason = verdict([number("sl", 0.1, OTHER_WAY), number("scl", 0.3, OTHER_WAY)])
    assert reason.startswith("scl decides")
    assert verdict(good, "because") == (HOLDS, "because")


# Planted effects.

END = LAYERS - LAYERS // 3


def everything(seeds: int = 2) -> list[Network]:
    """The small preset's, and a second seed of full-at and of the budgets."""
    networks = networks_of(seeds=seeds)
    more = [
        replace(one, name=one.name[:-1] + "1", seed=1) for one in networks
        if one.scenario == "full-at" or "eps" in one.name
    ]  # fmt: skip
    return networks + (more if seeds > 1 else [])


def end_of(one: Network) -> float:
    """The last third's CKA(clean, attacked), as the paper has it."""
    if one.scenario == "untrained":
        return 0.9
    shift = {"sl": 0.0, "scl": 0.02, "cl": 0.04}[one.scheme]
    if one.scenario == "st":
        return 0.3 + shift
    if one.scenario == "full-at":
        return 0.83 + shift / 2
    return 0.75 + shift + 0.06 * math.log2(8 * (one.eps or EPS) / EPS / 2)


def claimed(**other: Callable) -> Truth:
    """A world where every claim is true, but for `other`."""

    def clean_attacked(one: Network, condition: str, layer: int) -> float:
        if condition == "noise":
            return 0.985
        return end_of(one) if layer >= END else 0.9 if one.scenario == "st" else 0.97

    def far(one: Network) -> float:
        if one.scenario == "full-at" and one.scheme == "cl":
            return 0.35
        return {"st": 0.2, "untrained": 0.4}.get(one.scenario, 0.6)

    def cross(a: Network, b: Network, condition: str) -> float:
        if a.scheme == b.scheme:
            if a.scenario != b.scenario and "st" not in (a.scenario, b.scenario):
                return 0.6 if a.scheme == "cl" else 0.95
            return 0.96
        both = {a.scenario, b.scenario}
        return 0.3 if "st" in both else 0.7

    known = {
        "clean_attacked": clean_attacked, "far": far, "cross": cross,
        "block": lambda one: 0.3 if one.scenario == "st" else 0.0,
    }  # fmt: skip
    return Truth(**{**known, "images": 0.01, "seeds": 0.002, **other})


def evidence_of(
    truth: Truth, networks: Sequence[Network] | None = None, *, seed: int = 0,
    common: Callable | None = None, right: Callable | None = None,
) -> Evidence:  # fmt: skip
    """Of predictions in which at networks share nine tenths of their mistakes, others a fifth."""
    networks = list(networks or everything())
    common = common or (lambda one, what: 0.9 if one.scenario == "at" else 0.2)

    def said(what: str, layers: Sequence[str] = ()) -> pd.DataFrame:
        return said_of(
            networks, lambda one: common(one, what),
            lambda one: 0.5 if one.scenario == "at" else 0.1, layers=layers, seed=seed,
        )  # fmt: skip

    return Evidence(
        networks, planted(networks, truth, seed=seed), own="pgd", shared="shared",
        accuracy=accuracy_of(networks, right or (lambda one: end_of(one) / 2)),
        predictions=said("prediction"),
        probe_predictions=said("probe", ("layer0", f"layer{LAYERS - 1}")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def world() -> list[Finding]:
    return findings(evidence_of(claimed()))


@pytest.mark.parametrize("key", "12345678")
def test_what_is_planted_as_claimed_holds(world: list[Finding], key: str) -> None:
    found = world[int(key) - 1]
    assert found.key == key
    assert found.verdict == HOLDS, found.reason
    assert {one.outcome for one in found.differences} == {AS_CLAIMED}
    assert found.numbers
    assert found.controls
    assert found.reason.endswith(".")
    assert found.margin == 0.02
    for one in found.differences:
        assert one.signed
        assert one.lower < one.value <= one.upper  # of ranks in order the end is 1
        assert one.spread is not None


def flat(one: Network, condition: str, layer: int) -> float:
    return 0.8


WRONG = {
    # The attack moves no further than noise, and as much everywhere.
    "1 flat": ("1", {"clean_attacked": flat}, {}),
    # Most at the start.
    "1 start": ("1", {"clean_attacked": lambda one, condition, layer: 0.985
                      if condition == "noise" else 0.5 + layer / 20}, {}),
    "2 flat": ("2", {"clean_attacked": flat}, {}),
    "2 reversed": ("2", {"clean_attacked": lambda one, condition, layer: 0.9
                         if one.scenario == "st" else 0.6}, {}),
    "3 long range": ("3", {"far": lambda one: 0.5}, {}),
    "3 blocks": ("3", {"block": lambda one: 0.3}, {}),
    "3 blocks appear": ("3", {"block": lambda one: 0.3 if one.scenario == "at" else 0.0}, {}),
    "4 apart": ("4", {"cross": lambda a, b, condition: 0.3 if "at" in
                      (a.scenario, b.scenario) else 0.6}, {}),
    # Alike on own attacks only: the paper's reading holds, the shared set refutes it.
    "4 own only": ("4", {"cross": lambda a, b, condition: 0.7 if a.scenario == b.scenario == "at"
                         and condition == "pgd" else 0.3}, {}),
    "5 flat": ("5", {"clean_attacked": lambda one, condition, layer: 0.9}, {}),
    # Everywhere, not most at the end.
    "5 everywhere": ("5", {"clean_attacked": lambda one, condition, layer:
                           0.5 + 0.1 * math.log2((one.eps or EPS) / EPS * 8)}, {}),
    "6 reversed": ("6", {}, {"right": lambda one: 1 - end_of(one)}),
    "7 all hardly": ("7", {"far": lambda one: 0.6, "cross": lambda a, b, condition: 0.95}, {}),
    # Every scheme changes: full-at is further from at than another seed is.
    "7 others, too": ("7", {"cross": lambda a, b, condition: 0.96 if a.scenario == b.scenario
                            else 0.6}, {}),
    "8 apart": ("8", {}, {"common": lambda one, what: 0.2 if one.scenario == "at" else 0.9}),
    "8 probes apart": ("8", {}, {"common": lambda one, what: 0.9
                                 if (one.scenario == "at") == (what == "prediction") else 0.2}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_planted_otherwise_does_not_hold(name: str) -> None:
    key, truth, rest = WRONG[name]
    truth = {"images": 0.002, "seeds": 0.0005, **truth}
    found = findings(evidence_of(claimed(**truth), **rest))[int(key) - 1]
    assert found.verdict == FAILS, found.reason
    assert {OTHER_WAY, NOTHING} & {one.outcome for one in found.differences}


@pytest.mark.parametrize("odd", SCHEMES)
def test_one_scheme_that_differs_decides(odd: str) -> None:
    truth = claimed(images=0.002, seeds=0.0005)
    usual = truth.clean_attacked

    def clean_attacked(one: Network, condition: str, layer: int) -> float:
        if one.scheme == odd and one.scenario in ("st", "at"):
            return 0.9
        return usual(one, condition, layer)

    truth.clean_attacked = clean_attacked
    first, second = findings(evidence_of(truth))[:2]
    for found in (first, second):
        assert found.verdict == FAILS
        assert found.reason.startswith(f"{odd} decides: ")
        others = ", ".join(one for one in SCHEMES if one != odd)
        assert found.reason.endswith(f"as claimed throughout in {others}.")


def test_an_effect_no_larger_than_seeds_is_not_resolved() -> None:
    truth = claimed(images=0.001, seeds=0.3)
    usual = truth.clean_attacked
    truth.clean_attacked = lambda one, condition, layer: (
        usual(one, condition, layer) if one.scenario != "at" or condition == "noise" else 0.75
    )
    seen = set()
    for seed in range(8):
        found = findings(evidence_of(truth, seed=seed))[1]
        seen |= {one.outcome for one in found.differences}
        assert found.verdict != HOLDS
    assert WITHIN_SEEDS in seen


def test_noise_of_images_leaves_a_claim_open() -> None:
    found = findings(evidence_of(claimed(images=2.0)))[1]
    assert found.verdict == OPEN
    assert UNSURE in found.reason


def test_one_seed_leaves_a_claim_open() -> None:
    found = findings(evidence_of(claimed(), networks_of(seeds=1)))
    # Agreement of one pair each has no spread either; ranks have none without seeds.
    assert {one.verdict for one in found if one.key != "7"} == {OPEN}
    assert {one.outcome for one in found[1].differences} == {ONE_SEED}
    assert "no second seed" in found[1].reason
    assert not [one for one in found[0].controls if "two_seeds" in one.key]
    # Full-at is held against two seeds of at.
    assert found[6].verdict == NOT_RUN
    assert found[6].reason.startswith("Needs full-at and two seeds of at networks of cl and of")
    assert found[6].numbers


def test_another_scheme_alone_is_enough_for_what_it_has() -> None:
    networks = [*everything(), *(Network(f"rocl-at-{i}", "rocl", "at", i, EPS) for i in (0, 1))]
    truth = claimed()
    truth.clean_attacked = lambda one, condition, layer: (
        0.97 if one.scheme == "rocl"
        else claimed().clean_attacked(one, condition, layer)
    )  # fmt: skip
    found = findings(evidence_of(truth, networks, right=lambda one: 0.5))
    assert found[1].verdict == HOLDS
    assert "rocl is left out: it has no st network." in found[1].notes
    assert not [one for one in found[1].differences if one.scheme == "rocl"]


def test_published_matrices_without_replicates_give_numbers_and_no_verdict() -> None:
    evidence = evidence_of(claimed())
    pairs = evidence.similarity.pairs
    bare = replace(evidence.similarity, pairs=replace(pairs, replicates=None))
    found = findings(
        replace(evidence, similarity=bare, predictions=None, probe_predictions=None, accuracy=None)
    )
    with_them = findings(evidence)
    for i in (0, 1, 2, 3, 4, 6):
        assert found[i].verdict == OPEN
        assert {one.outcome for one in found[i].differences} == {NO_INTERVAL}
        assert [one.value for one in found[i].differences] == [
            one.value for one in with_them[i].differences
        ]
        assert {one.lower for one in found[i].numbers} == {None}
    assert [found[i].verdict for i in (5, 7)] == [NOT_RUN, NOT_RUN]


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        (lambda one: one.scenario == "at", "123478"),
        (lambda one: one.scenario == "st", "2345678"),
        # Its recipes of at are three, of 2, 8 and 16/255.
        (lambda one: one.scheme == "sl" and one.scenario in ("st", "at"), "4678"),
        (lambda one: one.scheme != "cl", "7"),
        (lambda one: one.scenario != "full-at", "7"),
        (lambda one: "eps" not in one.name, "5"),
        (lambda one: one.scenario == "untrained", "12345678"),
    ],
)
def test_what_has_no_networks_is_not_run_and_says_what_it_needs(
    kept: Callable[[Network], bool], missing: str
) -> None:
    networks = [one for one in networks_of() if kept(one)]
    evidence = Evidence(
        networks, random_pairs(networks, 6), own="pgd", shared="shared",
        accuracy=accuracy_of(networks, lambda one: 0.1 + len(one.name) / 100),
        predictions=said_of(networks, lambda one: 0.5, lambda one: 0.2, images=100),
    )  # fmt: skip
    found = findings(evidence)
    assert {one.key for one in found if one.verdict == NOT_RUN} == set(missing)
    for one in found:
        if one.verdict == NOT_RUN:
            assert one.reason.startswith("Needs ")
            assert not one.differences


def test_own_attacks_that_are_not_there_are_said() -> None:
    networks = networks_of(("sl",), full=False, budgets=False)
    evidence = Evidence(networks, random_pairs(networks, 6), own="autoattack")
    found = findings(evidence)
    assert [one.verdict for one in found[:2]] == [NOT_RUN, NOT_RUN]
    assert found[2].verdict != NOT_RUN  # long range is of clean images


def test_without_a_control_clean_images_stand_in() -> None:
    networks = networks_of(("sl",), full=False, budgets=False)
    evidence = Evidence(networks, planted(networks, claimed()), own="pgd", noise="none")
    found = standard(Desk(evidence, 0.02, "blocks18"))
    assert found.verdict == HOLDS
    assert any("no control noise" in note for note in found.notes)
    less = next(one for one in found.differences if one.key == "noise_less_attack")
    mean = next(one for one in found.numbers if one.key == "alignment_mean")
    assert less.value == pytest.approx(1 - mean.value)
    assert less.upper - less.lower == pytest.approx(mean.upper - mean.lower)


def test_own_attacks_alone_resolve_nothing() -> None:
    """Most of the gain on own attacks is that standard networks see different images."""
    for evidence in (
        replace(evidence_of(claimed()), shared=None),
        replace(evidence_of(claimed()), shared="not made"),
    ):
        found = cross_scheme(Desk(evidence, 0.02, "blocks18"))
        assert {one.outcome for one in found.differences} == {AS_CLAIMED}
        assert found.verdict == OPEN
        assert found.reason.startswith("No shared attacked set")
        assert any(note.endswith("read on own attacks only.") for note in found.notes)
        assert not [one for one in found.numbers if "_shared" in one.key]
    apart = claimed(cross=lambda a, b, condition: 0.3 if "at" in (a.scenario, b.scenario) else 0.6)
    found = cross_scheme(Desk(replace(evidence_of(apart), shared=None), 0.02, "blocks18"))
    assert found.verdict == FAILS


def test_what_noise_gains_is_not_the_attacks() -> None:
    """at gains .4 under attack and .3 under noise: three quarters of it, and .1 beyond."""

    def cross(a: Network, b: Network, condition: str) -> float:
        if a.scheme == b.scheme or "st" in (a.scenario, b.scenario):
            return 0.3
        return 0.6 if condition == "noise" else 0.7

    found = cross_scheme(Desk(evidence_of(claimed(cross=cross, images=0.002)), 0.02, "blocks18"))
    beyond = [one for one in found.numbers if one.key.endswith("_beyond_noise")]
    assert len(beyond) == 3 * 5 * 2
    assert found.numbers[: len(beyond)] == beyond
    for one in beyond:
        assert one.value == pytest.approx(0.1, abs=0.01)
        assert one.lower < one.value < one.upper
    assert re.search(r"; of these gains 7\d( to 7\d)?% is there under noise", found.reason)
    assert sum("beyond noise: sl & scl +0." in note for note in found.notes) == 4
    silent = cross_scheme(
        Desk(replace(evidence_of(claimed(cross=cross)), noise="none"), 0.02, "blocks18")
    )
    assert "under noise" not in silent.reason
    assert any(note.startswith("No control none: how much") for note in silent.notes)


def test_blocks_decide_only_where_both_definitions_have_one_sign() -> None:
    """at networks have more blocks beyond distance, and less plain contrast: far is as near."""
    truth = claimed(
        far=lambda one: 0.2 if one.scenario == "st" else 0.6,
        block=lambda one: 0.02 if one.scenario == "st" else 0.1, images=0.002,
    )  # fmt: skip
    found = long_range(Desk(evidence_of(truth), 0.02, "blocks18"))
    blocks = [one for one in found.differences if one.key == "block_structure_st_less_at"]
    plain = {one.scheme: one for one in found.numbers if one.key == "plain_contrast_st_less_at"}
    for one in blocks:
        assert one.value * plain[one.scheme].value < 0
        assert one.outcome == OPPOSED
    assert len(blocks) == 3
    assert found.verdict == OPEN
    first, second = found.reason.split(". Block structure vanishes: ")
    assert first.startswith("Long range amplified: holds; All 3 differences")
    assert second.startswith("not resolved; ")
    assert second.endswith(", ".join(f"{s} {one.text()}" for s, one in plain.items()) + ".")
    # Where they agree the part has a verdict, and the whole claim needs both.
    found = long_range(Desk(evidence_of(claimed()), 0.02, "blocks18"))
    assert found.verdict == HOLDS
    assert "Block structure vanishes: holds; All 3 differences" in found.reason
    same_far = claimed(images=0.5, far=lambda one: 0.5)
    found = long_range(Desk(evidence_of(same_far), 0.02, "blocks18"))
    assert found.verdict == OPEN
    assert found.reason.startswith("Long range amplified: not resolved; ")


def test_what_noise_correlates_with_is_said() -> None:
    """Networks whose clean and noisy images are as alike as they are robust: no word of attacks."""
    truth = claimed(images=0.0001)
    usual = truth.clean_attacked
    truth.clean_attacked = lambda one, condition, layer: (
        end_of(one) if condition == "noise" else usual(one, condition, layer)
    )
    evidence = evidence_of(truth)
    found = ranks(Desk(evidence, 0.02, "blocks18"))
    assert found.reason.count(", as strongly") == 2
    still = ranks(Desk(evidence_of(claimed(images=0.0001)), 0.02, "blocks18"))
    assert "The control, CKA(clean, noise), correlates by" in still.reason
    assert "as strongly" not in still.reason


def test_the_margin_is_the_users() -> None:
    evidence = evidence_of(claimed())
    strict = findings(evidence, margin=0.95)
    assert {one.margin for one in strict} == {0.95}
    assert strict[1].verdict == FAILS
    assert "within the margin" in strict[1].reason


def test_full_at_changes_more_than_a_seed_does_or_not() -> None:
    """cl's at and full-at are less alike than two seeds, the others' more, or as much."""

    def cross(a: Network, b: Network, condition: str) -> float:
        if a.scenario == b.scenario:
            return 0.8
        return {"sl": 0.95, "scl": 0.805}.get(a.scheme, 0.5)

    evidence = evidence_of(claimed(cross=cross, images=0.001))
    found = full_at(Desk(evidence, 0.02, "blocks18"))
    assert found.verdict == HOLDS, found.reason
    values = {one.scheme: one.value for one in found.differences}
    assert values == pytest.approx({"cl": 0.3, "sl": -0.15, "scl": -0.005}, abs=0.01)
    assert found.reason.startswith("cl changes: holds; CKA(two seeds of at) - CKA(at, full-at)")
    assert "sl and scl hardly change: holds; below 0 or within the margin: sl -0.1" in found.reason
    assert any(note.startswith("How far chance takes two seeds apart") for note in found.notes)
    # Less alike than two seeds in scl, too.
    cross_too = claimed(
        cross=lambda a, b, condition: 0.6 if a.scheme == "scl" and a.scenario != b.scenario
        else cross(a, b, condition), images=0.001,
    )  # fmt: skip
    found = full_at(Desk(evidence_of(cross_too), 0.02, "blocks18"))
    assert found.verdict == FAILS
    assert "cl changes: holds" in found.reason
    assert "sl and scl hardly change: does not hold; scl decides" in found.reason


def test_full_at_may_move_either_way() -> None:
    """cl's long-range similarity falls in the planted world; rising as far is as much a change."""
    up = claimed(far=lambda one: 0.85 if (one.scheme, one.scenario) == ("cl", "full-at") else
                 0.2 if one.scenario == "st" else 0.6)  # fmt: skip
    found = full_at(Desk(evidence_of(up), 0.02, "blocks18"))
    assert found.verdict == HOLDS, found.reason
    moved = [note for note in found.notes if note.startswith("Long-range similarity from at")]
    assert len(moved) == 3
    assert sum("hardly moves" in note for note in moved) == 2
    assert any("in cl: +0.2" in note and "rises" in note for note in moved)
    assert any("in the paper's data -0.175" in note for note in moved)
    move = next(one for one in found.numbers if one.key == "long_range_moves")
    # |cl| - |sl| of the paper, whichever way ours went.
    assert move.paper == pytest.approx(abs(0.4708 - 0.6455) - abs(0.4171 - 0.4107))


def test_cl_alone_has_numbers_of_full_at_and_no_verdict() -> None:
    networks = [one for one in everything() if one.scheme == "cl"]
    found = full_at(Desk(evidence_of(claimed(), networks), 0.02, "blocks18"))
    assert found.verdict == NOT_RUN
    assert found.reason.endswith("at and full-at are there for cl.")
    assert {one.scheme for one in found.numbers} == {"cl"}
    assert "in cl: -0.2" in found.notes[0]


# How often the rule is wrong, over many draws.


def small(truth: Truth, seed: int, scheme: str = "sl") -> Evidence:
    networks = networks_of((scheme,), full=False, budgets=False, untrained=False)
    return Evidence(networks, planted(networks, truth, seed=seed), own="pgd")


def test_intervals_cover_the_planted_difference() -> None:
    """Two seeds that differ by nothing, images that vary: 95% of 300 intervals, ± 3 errors."""
    inside = 0
    truth = claimed(images=0.1, seeds=0.0)
    for seed in range(150):
        found = adversarial(Desk(small(truth, seed), 0.02, "blocks18"))
        for one in found.differences:
            networks = {s: Network("a", "sl", s, 0, EPS) for s in ("st", "at")}
            ends = {s: end_of(one) for s, one in networks.items()}
            start = {"st": 0.9, "at": 0.97}
            planted_value = ends["at"] - ends["st"]
            if one.key == "alignment_mean_at_less_st":
                thirds = LAYERS // 3
                planted_value = (
                    planted_value * thirds + (start["at"] - start["st"]) * (LAYERS - thirds)
                ) / LAYERS
            inside += one.lower <= planted_value <= one.upper
    assert 0.91 < inside / 300 < 0.985


def test_a_null_is_rarely_said_to_hold() -> None:
    """Nothing planted: by chance a claim of one scheme holds in at most a few of a hundred."""
    truth = claimed(images=0.5, seeds=0.002, clean_attacked=flat)
    said = [adversarial(Desk(small(truth, seed), 0.02, "blocks18")).verdict for seed in range(200)]
    # Both differences must leave 0 upwards: each does by chance in 2.5 of a hundred.
    assert said.count(HOLDS) <= 8
    assert said.count(FAILS) <= 20
    assert said.count(OPEN) > 150


def test_a_null_that_is_known_well_does_not_hold() -> None:
    truth = claimed(images=0.005, seeds=0.0, clean_attacked=flat)
    said = [adversarial(Desk(small(truth, seed), 0.02, "blocks18")).verdict for seed in range(30)]
    assert said.count(FAILS) >= 29


def test_seeds_that_vary_without_effect_rarely_hold() -> None:
    """Images known exactly, seeds of sd 0.1: an interval over images alone would be fooled."""
    truth = claimed(images=0.0001, seeds=0.1, clean_attacked=flat)
    found = [adversarial(Desk(small(truth, seed), 0.02, "blocks18")) for seed in range(200)]
    above = sum(all(one.lower > 0.02 for one in each.differences) for each in found)
    holds = sum(each.verdict == HOLDS for each in found)
    generator = np.random.default_rng(0)
    draws = generator.normal(size=(100_000, 2, 2))
    gap = draws[:, 0].mean(1) - draws[:, 1].mean(1)
    expected = float((gap > np.ptp(draws, axis=2).max(1)).mean())
    assert above > 70  # nearly half, by chance
    assert holds / 200 == pytest.approx(expected, abs=0.06)
    assert expected < 0.15


# Predictions.


def test_predictions_are_paired_image_by_image() -> None:
    """With no more images than groups the jackknife is the t interval of the mean difference."""
    generator = np.random.default_rng(0)
    names = [f"{name}:pgd" for name in ("a", "b", "c", "d")]
    table = pd.DataFrame({name: generator.integers(0, 3, size=40) for name in names})
    table["label"] = 0
    source = Predictions(table)
    first, second = (source.find("prediction", *names[i : i + 2]) for i in (0, 2))
    a, b, c, d = (table[name] for name in names)
    each = (a == b).astype(float) - (c == d).astype(float)
    half = student.ppf(0.975, 39) * each.std(ddof=1) / math.sqrt(40)
    assert (first - second).value == pytest.approx(each.mean())
    assert (first - second).interval() == pytest.approx((each.mean() - half, each.mean() + half))
    assert source.find("probe x", *names[:2]) is None
    assert source.find("prediction", "a:pgd", "e:pgd") is None


def test_images_without_a_prediction_are_left_out() -> None:
    table = pd.DataFrame({"a:x": [0, 1, -1, 2, 1], "b:x": [0, 2, 1, -2, 1], "label": 0})
    found = Predictions(table).find("prediction", "a:x", "b:x")
    assert found is None  # a group that is empty has no replicate
    table = pd.DataFrame({"a:x": np.tile([0, 1], 200), "b:x": np.tile([0, 0], 200), "label": 0})
    table.loc[:20, "a:x"] = -1
    found = Predictions(table).find("prediction", "a:x", "b:x")
    assert found.value == pytest.approx((table["b:x"] == table["a:x"])[21:].mean())
    assert found.sizes.sum() == 379


def test_unequal_accuracies_are_no_agreement() -> None:
    """As many mistakes in common, but st networks of accuracies .8 and .1, at networks of .45.

    Agreement on all images is bounded by 1 - |p - q|, so at gains there, and nothing else.
    """
    networks = networks_of(full=False, budgets=False, untrained=False)
    low = {"sl": 0.8, "scl": 0.45, "cl": 0.1}
    said = said_of(
        networks, lambda one: 0.6, lambda one: 0.45 if one.scenario == "at" else low[one.scheme],
        images=4000,
    )  # fmt: skip
    evidence = Evidence(
        networks, random_pairs(networks, 6), own="pgd", shared="shared", predictions=said
    )
    found = predictions(Desk(evidence, 0.02, "blocks18"))
    raw = [one for one in found.numbers if one.key == "prediction_agreement_own_at_less_st"]
    assert next(one for one in raw if one.scheme == "sl & cl").outcome == AS_CLAIMED
    assert {one.key for one in found.differences} == {
        "prediction_both_wrong_own_at_less_st", "prediction_both_wrong_shared_at_less_st"
    }  # fmt: skip
    assert AS_CLAIMED not in {one.outcome for one in found.differences}
    assert found.verdict != HOLDS
    kappa = [one for one in found.numbers if one.key == "prediction_kappa_own_at_less_st"]
    assert len(kappa) == 3
    assert all(one.lower < one.value < one.upper for one in kappa)
    assert "No probes of the final layer on attacked images: predictions alone decide." in (
        found.notes
    )
    for one in found.differences:
        assert one.command.split()[3] == "predictions.csv"
        assert 300 < one.samples < 4000
    note = next(note for note in found.notes if "do not get the same images wrong" in note)
    sides = [one for one in found.numbers if one.key == "prediction_both_wrong_own"]
    least = {s: min(one.samples for one in sides if one.scenario == s) for s in ("st", "at")}
    assert f"own {least['st']} of two st networks and {least['at']} of two at networks" in note


def test_ratios_of_sums_cover() -> None:
    """What two networks share of the images that both get wrong: 95% of 300 intervals."""
    truth = 0.6**2 + (1 - 0.6**2) / 9
    pair = [Network("a", "sl", "at", 0), Network("b", "cl", "at", 0)]
    inside = 0
    for seed in range(300):
        table = said_of(pair, lambda one: 0.6, lambda one: 0.4, images=400, seed=seed)
        found = Predictions(table).find("both wrong of prediction", "a:pgd", "b:pgd")
        lower, upper = found.interval()
        inside += lower <= truth <= upper
        wrong = (table["a:pgd"] != table["label"]) & (table["b:pgd"] != table["label"])
        assert found.samples == wrong.sum()
    assert 0.915 < inside / 300 < 0.985


@pytest.mark.parametrize(("accuracy", "decided"), [(0.5, True), (0.9, False), (1.0, False)])
def test_a_part_of_few_images_decides_nothing(accuracy: float, decided: bool) -> None:
    networks = networks_of(full=False, budgets=False, untrained=False)
    said = said_of(
        networks, lambda one: 1.0 if one.scenario == "at" else 0.0,
        lambda one: accuracy if one.scenario == "at" else 0.1, images=400,
    )  # fmt: skip
    evidence = Evidence(networks, random_pairs(networks, 6), own="pgd", predictions=said)
    found = predictions(Desk(evidence, 0.02, "blocks18"))
    assert len(found.differences) == 3
    assert (TOO_FEW not in {one.outcome for one in found.differences}) == decided
    few = "A part of fewer than 50 images that both get wrong decides nothing."
    assert (few in found.notes) != decided
    if not decided:
        assert found.verdict == OPEN
        assert "too few images that both get wrong" in found.reason
        assert all(one.samples < 50 for one in found.differences)
    if accuracy == 1:
        assert all(math.isnan(one.value) for one in found.differences)
        assert {one.samples for one in found.differences} == {0}


def test_probes_are_paired_where_each_image_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = networks_of(full=False, budgets=False, untrained=False)
    generator = np.random.default_rng(2)
    probed = pd.DataFrame({"label": np.full(100, 9), **{
        f"{layer}|{one.name}:{condition}": generator.integers(0, 2, size=100)
        for layer in ("layer0", "layer5") for one in networks for condition in ("clean", "pgd")
    }})  # fmt: skip
    evidence = Evidence(networks, random_pairs(networks, 6), own="pgd", probe_predictions=probed)
    found = predictions(Desk(evidence, 0.02, "blocks18"))
    monkeypatch.chdir(tmp_path)
    probed.to_csv("probe_predictions.csv", index=False)
    of_probes = [
        one for one in [*found.differences, *found.numbers]
        if one.key == "probe_both_wrong_own_at_less_st"
    ]  # fmt: skip
    assert sorted(one.layers for one in of_probes) == ["layer0"] * 3 + ["layer5"] * 3
    assert {one.layers for one in found.differences} == {"layer5"}
    for one in of_probes:
        a, b = one.scheme.split(" & ")
        each = np.zeros(100)
        for sign, scenario in ((1, "at"), (-1, "st")):
            for i in (0, 1):
                for j in (0, 1):
                    x, y = (
                        probed[f"{one.layers}|{name}-{scenario}-{k}:pgd"]
                        for name, k in ((a, i), (b, j))
                    )
                    each += sign * (x == y) / 4
        assert one.value == pytest.approx(each.mean())
        groups = np.asarray(each).reshape(2, 50).mean(0)  # every 50th image is left out together
        half = student.ppf(0.975, 49) * groups.std(ddof=1) / math.sqrt(50)
        assert (one.lower, one.upper) == pytest.approx((each.mean() - half, each.mean() + half))
        words = re.findall(r'findings (\S+) "(.*)"', one.command)[0]
        assert words[0] == "probe_predictions.csv"
        value, ends = again(*words)
        assert value == pytest.approx(one.value)
        assert ends == pytest.approx((one.lower, one.upper))


def test_accuracies_are_of_the_images_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of another draw or strength; exact, so that 0 right of n has no bound below 0."""
    networks = networks_of(full=False, budgets=False, untrained=False)
    table = said_of(networks, lambda one: 0.5, lambda one: 0.5, images=200)
    for one in networks:
        if one.scenario == "st":
            table[f"{one.name}:pgd"] = (table["label"] + 1) % 10
    probed = table.rename(columns=lambda name: name if name == "label" else f"layer5|{name}")
    evidence = Evidence(
        networks, random_pairs(networks, 6), own="pgd", shared="shared", predictions=table,
        probe_predictions=probed, accuracy=accuracy_of(networks, lambda one: 0.123),
    )  # fmt: skip
    found = predictions(Desk(evidence, 0.02, "blocks18"))
    beside = [one for one in found.controls if "accuracy" in one.key]
    assert {one.key for one in beside} == {
        f"compared_{what}accuracy_{reading}"
        for what in ("", "probe_") for reading in ("clean", "own", "shared")
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    table.to_csv("predictions.csv", index=False)
    probed.to_csv("probe_predictions.csv", index=False)
    for one in beside:
        assert one.interval == "exact binomial"
        assert one.samples == 200
        each = [
            binomtest(int((table[f"{name}:{one.conditions[0]}"] == table["label"]).sum()), 200)
            for name in one.networks
        ]
        assert one.value == pytest.approx(np.mean([test.statistic for test in each]))
        ends = [test.proportion_ci(0.95, method="exact") for test in each]
        assert one.lower == pytest.approx(np.mean([low for low, _ in ends]))
        assert one.lower >= 0
        assert one.upper == pytest.approx(np.mean([high for _, high in ends]))
        value, again_ = again(*re.findall(r'findings (\S+) "(.*)"', one.command)[0])
        assert value == pytest.approx(one.value)
        assert again_ == pytest.approx((one.lower, one.upper))
    none = [one for one in beside if one.key == "compared_accuracy_own" and one.scenario == "st"]
    assert {(one.value, one.lower) for one in none} == {(0.0, 0.0)}


def test_what_probes_said_is_kept_of_every_layer() -> None:
    """With labels; of more than 20 layers of every second one, the last among them."""

    def report(count: int) -> ProbeReport:
        layers = [f"layer{i}" for i in range(count)]
        said = {
            (layer, train, test, attack): np.full(4, i)
            for i, layer in enumerate(layers) for train in ("clean", "both:pgd")
            for test, attack in (("clean", "none"), ("pgd", "transfer"), ("pgd", "adaptive"))
        }  # fmt: skip
        return ProbeReport(
            pd.DataFrame({"layer": layers}), said, np.array([3, 1, 2, 0]), np.arange(4), {}
        )

    few = _probes_said({"a": report(20), "b": report(3)})
    assert few["label"].tolist() == [3, 1, 2, 0]
    assert set(few) == {"label"} | {
        f"layer{i}|{name}:{test}" for name, count in (("a", 20), ("b", 3)) for i in range(count)
        for test in ("clean", "pgd")
    }  # fmt: skip
    many = _probes_said({"a": report(40), "b": report(41)})
    kept = {name.partition(":")[0] for name in many if name != "label"}
    assert kept == {f"layer{i}|a" for i in range(1, 40, 2)} | {
        f"layer{i}|b" for i in range(1, 41, 3)
    }  # fmt: skip
    assert many["layer39|a:pgd"].tolist() == [39] * 4


def test_a_study_says_how_far_its_training_attacks_go(tmp_path: Path) -> None:
    settings_ = load_preset("small")
    short = {"attack": "pgd,steps=5,step_size=0.01,start=clean"}
    kinds = [
        replace(kind, name="short", encoder=short) if kind.name == "sl-at-eps16" else kind
        for kind in settings_.kinds
    ]
    kinds.append(next(kind for kind in settings_.kinds if kind.name == "sl-at-eps16"))
    settings_ = replace(settings_, kinds=kinds)
    study = Study(tmp_path, settings_, preset_networks(settings_))
    reach = {one.name: _reach(study, one) for one in study.networks}
    assert reach["short-0"] == pytest.approx(0.05)  # five steps of 0.01 from the clean image
    assert reach["sl-at-eps16-0"] == pytest.approx(16 / 255)
    assert reach["sl-at-eps2-0"] == pytest.approx(2 / 255)
    assert reach["cl-full-at-0"] == pytest.approx(8 / 255)
    assert reach["sl-st-0"] is reach["untrained-0"] is None


# What one network lacks.


def without(evidence: Evidence, name: str, condition: str, layers: Sequence[int]) -> None:
    """Make these layers of CKA(clean, condition) of one network undefined."""
    place = {key: i for i, key in enumerate(evidence.similarity.keys)}
    pairs = evidence.similarity.pairs
    for layer in layers:
        i, j = (place[name, one, f"layer{layer}"] for one in ("clean", condition))
        for values in (pairs.value[None], pairs.replicates):
            values[:, i, j] = values[:, j, i] = np.nan


def test_differences_within_a_network_are_of_one_network() -> None:
    """Seed 0 lacks its end and seed 1 its start: seed 2 alone has a fall from one to the other."""
    networks = networks_of(("sl",), 3, full=False, budgets=False, untrained=False)
    evidence = Evidence(networks, random_pairs(networks, 6), own="pgd")
    last, first = range(END, LAYERS), range(END)
    desk = Desk(evidence, 0.02, "blocks18")
    start, end = (
        desk.similarity.find(part, "sl-st-2:clean", "sl-st-2:pgd")
        for part in ("first two thirds", "last third")
    )
    without(evidence, "sl-st-0", "pgd", last)
    without(evidence, "sl-st-1", "pgd", first)
    without(evidence, "sl-st-1", "noise", range(LAYERS))
    found = standard(Desk(evidence, 0.02, "blocks18"))
    fall = next(one for one in found.differences if one.key == "fall_at_the_end")
    assert fall.networks == ("sl-st-2",)
    assert fall.value == pytest.approx((start - end).value)
    moved = next(one for one in found.differences if one.key == "noise_less_attack")
    assert moved.networks == ("sl-st-0", "sl-st-2")


def test_a_network_without_an_end_ends_no_budget() -> None:
    networks = [
        Network(f"sl-at-{eps}-{seed}", "sl", "at", seed, eps / 255)
        for eps in (2, 8) for seed in (0, 1)
    ]  # fmt: skip
    evidence = Evidence(networks, random_pairs(networks, 6), own="pgd")
    without(evidence, "sl-at-2-0", "pgd", range(END, LAYERS))
    found = budgets(Desk(evidence, 0.02, "blocks18"))
    more = next(one for one in found.differences if one.key == "rise_most_at_end")
    assert "sl-at-2-0" not in more.networks


def test_matrices_that_know_a_part_only_give_what_they_have() -> None:
    """As published ones: clean against attacked of each network, nothing between networks."""
    evidence = evidence_of(claimed())
    pairs = evidence.similarity.pairs
    model = np.array([key[0] for key in evidence.similarity.keys])
    value = np.where(model[:, None] == model[None], pairs.value, np.nan)
    part = replace(evidence.similarity, pairs=replace(pairs, value=value, replicates=None))
    found = findings(replace(evidence, similarity=part))
    assert {one.key for one in found if one.verdict == NOT_RUN} == {"4", "7"}
    assert {one.key for one in found[6].numbers} >= {"long_range_full_less_at", "long_range_moves"}
    assert [one.value for one in found[1].differences] == [
        one.value for one in findings(evidence)[1].differences
    ]
    assert not [one for one in found[0].controls if "two_seeds" in one.key]
