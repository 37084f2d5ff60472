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
    agreement_of,
    networks_of,
    planted,
    random_pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from repsim.findings import Evidence, Finding, Network, Number, findings
from repsim.findings.adversarial import adversarial
from repsim.findings.again import again
from repsim.findings.agreements import Agreements, Predictions
from repsim.findings.desk import Desk
from repsim.findings.full_at import full_at
from repsim.findings.number import Number as OneNumber
from repsim.findings.predictions import predictions
from repsim.findings.standard import standard
from repsim.findings.verdict import (
    AS_CLAIMED,
    NO_INTERVAL,
    NOTHING,
    ONE_SEED,
    OTHER_WAY,
    OUTCOMES,
    UNSURE,
    WITHIN_SEEDS,
    outcome,
    verdict,
)

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
        (ONE_SEED, OPEN), (NO_INTERVAL, OPEN),
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
    agree: Callable | None = None, right: Callable | None = None,
) -> Evidence:  # fmt: skip
    networks = list(networks or everything())
    return Evidence(
        networks, planted(networks, truth, seed=seed), own="pgd", shared="shared",
        accuracy=accuracy_of(networks, right or (lambda one: end_of(one) / 2)),
        agreement=agreement_of(
            networks,
            agree or (lambda a, b, what, condition: 0.8 - (a.seed + b.seed) / 1000
                      if {a.scenario, b.scenario} == {"at"} else 0.5),
            layers=("layer0", f"layer{LAYERS - 1}"),
        ),
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
        assert one.lower < one.value < one.upper
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
    "7 others more": ("7", {"far": lambda one: 0.3 if one.scenario == "full-at"
                            and one.scheme != "cl" else 0.6}, {}),
    "8 apart": ("8", {}, {"agree": lambda a, b, what, condition: 0.4
                          if a.scenario == b.scenario == "at" else 0.7}),
    "8 probes apart": ("8", {}, {"agree": lambda a, b, what, condition: 0.4 if what == "probe"
                                 and a.scenario == b.scenario == "at" else 0.8
                                 if a.scenario == b.scenario == "at" else 0.5}),
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
    # Agreement in one cell each has no spread either; ranks have none without seeds.
    assert {one.verdict for one in found} == {OPEN}
    assert {one.outcome for one in found[1].differences} == {ONE_SEED}
    assert "no second seed" in found[1].reason
    assert not [one for one in found[0].controls if "two_seeds" in one.key]


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
    found = findings(replace(evidence, similarity=bare, agreement=None, accuracy=None))
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
        (lambda one: one.scheme == "sl" and one.scenario in ("st", "at"), "478"),
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
        agreement=agreement_of(networks, lambda *_: 0.5),
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


def test_no_shared_set_is_said() -> None:
    evidence = replace(evidence_of(claimed()), shared=None)
    found = findings(evidence)[3]
    assert found.verdict == HOLDS
    assert "No shared attacked set: read on own attacks only." in found.notes
    assert not [one for one in found.numbers if "_shared" in one.key]


def test_the_margin_is_the_users() -> None:
    evidence = evidence_of(claimed())
    strict = findings(evidence, margin=0.95)
    assert {one.margin for one in strict} == {0.95}
    assert strict[1].verdict == FAILS
    assert "within the margin" in strict[1].reason


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
    move = next(one for one in found.differences if one.key == "long_range_moves")
    # |cl| - |sl| of the paper, whichever way ours went.
    assert move.paper == pytest.approx(abs(0.4708 - 0.6455) - abs(0.4171 - 0.4107))


def test_cl_alone_has_numbers_of_full_at_and_no_verdict() -> None:
    networks = [one for one in everything() if one.scheme == "cl"]
    found = full_at(Desk(evidence_of(claimed(), networks), 0.02, "blocks18"))
    assert found.verdict == NOT_RUN
    assert found.reason.endswith("both are there for cl.")
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
    table = pd.DataFrame({"a:x": [0, 1, -1, 2, 1], "b:x": [0, 2, 1, -2, 1]})
    found = Predictions(table).find("prediction", "a:x", "b:x")
    assert found is None  # a group that is empty has no replicate
    table = pd.DataFrame({"a:x": np.tile([0, 1], 200), "b:x": np.tile([0, 0], 200)})
    table.loc[:20, "a:x"] = -1
    found = Predictions(table).find("prediction", "a:x", "b:x")
    assert found.value == pytest.approx((table["b:x"] == table["a:x"])[21:].mean())
    assert found.sizes.sum() == 379


def test_predictions_stand_in_for_their_rows() -> None:
    networks = networks_of(full=False, budgets=False, untrained=False)
    generator = np.random.default_rng(1)
    label = generator.integers(0, 10, size=400)
    columns = {}
    for one in networks:
        for condition in ("clean", "pgd", "shared"):
            wrong = generator.integers(0, 10, size=400)
            kept = generator.uniform(size=400) < (0.9 if one.scenario == "at" else 0.2)
            columns[f"{one.name}:{condition}"] = np.where(kept, label, wrong)
    evidence = Evidence(
        networks, random_pairs(networks, 6), own="pgd", shared="shared",
        predictions=pd.DataFrame(columns),
    )  # fmt: skip
    found = predictions(Desk(evidence, 0.02, "blocks18"))
    assert found.verdict == HOLDS, found.reason
    assert "predictions.csv" in found.differences[0].command
    assert "No probes of the final layer on attacked images: predictions alone decide." in (
        found.notes
    )
    table = agreement_of(networks, lambda *_: 0.5, layers=("layer5",))
    both = predictions(Desk(replace(evidence, agreement=table), 0.02, "blocks18"))
    assert both.verdict == FAILS or both.verdict == OPEN  # the probes gain nothing
    assert {one.command.split()[3] for one in both.differences} == {
        "predictions.csv", "agreement.csv"
    }  # fmt: skip


def test_probes_are_paired_where_each_image_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = networks_of(full=False, budgets=False, untrained=False)
    generator = np.random.default_rng(2)
    probed = pd.DataFrame({
        f"layer5|{one.name}:{condition}": generator.integers(0, 2, size=100)
        for one in networks for condition in ("clean", "pgd")
    })  # fmt: skip
    evidence = Evidence(
        networks, random_pairs(networks, 6), own="pgd", probe_predictions=probed,
        agreement=agreement_of(networks, lambda *_: 0.5, layers=("layer0", "layer5")),
    )  # fmt: skip
    found = predictions(Desk(evidence, 0.02, "blocks18"))
    monkeypatch.chdir(tmp_path)
    probed.to_csv("probe_predictions.csv", index=False)
    of_probes = [one for one in found.differences if one.layers == "layer5"]
    assert len(of_probes) == 3
    for one in of_probes:
        a, b = one.scheme.split(" & ")
        each = np.zeros(100)
        for sign, scenario in ((1, "at"), (-1, "st")):
            for i in (0, 1):
                for j in (0, 1):
                    x, y = (
                        probed[f"layer5|{name}-{scenario}-{k}:pgd"] for name, k in ((a, i), (b, j))
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


def test_rows_without_an_interval_have_none() -> None:
    row = {"a": "x", "b": "y", "what": "prediction", "layer": "", "condition": "pgd",
           "agreement": 0.5, "lower": "", "upper": "", "kappa": ""}  # fmt: skip
    source = Agreements(pd.DataFrame([row]))
    assert source.find("prediction", "y:pgd", "x:pgd").interval() is None
    assert math.isnan(source.find("kappa of prediction", "x:pgd", "y:pgd").value)
    assert source.find("prediction", "x:pgd", "y:clean") is None


def test_accuracies_stand_beside_agreements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = evidence_of(claimed())
    rows = [
        {"network": one.name, "layer": layer, "train": train, "test": test, "attack": attack,
         "accuracy": 0.5 + 0.1 * one.seed + (layer == "layer5") / 8, "lower": 0.4, "upper": 0.6}
        for one in evidence.networks for layer in ("layer0", "layer5")
        for train, test, attack in (
            ("clean", "clean", "none"), ("clean", "pgd", "transfer"), ("clean", "pgd", "adaptive"),
            ("both:pgd", "pgd", "transfer"),
        )
    ]  # fmt: skip
    for row in rows:
        if row["attack"] == "adaptive" or row["train"] != "clean":
            row["accuracy"] = 0.0  # must not be taken
    evidence.probes = pd.DataFrame(rows)
    found = predictions(Desk(evidence, 0.02, "blocks18"))
    beside = [one for one in found.controls if "accuracy" in one.key]
    assert {one.key for one in beside} == {
        "accuracy_clean", "accuracy_own", "probe_accuracy_clean", "probe_accuracy_own"
    }  # fmt: skip
    probe = next(one for one in beside if one.key == "probe_accuracy_own")
    assert probe.value == pytest.approx(0.55 + 1 / 8)
    assert (probe.seed_lower, probe.seed_upper) == pytest.approx((0.625, 0.725))
    assert (probe.lower, probe.upper) == pytest.approx((0.575, 0.775))
    monkeypatch.chdir(tmp_path)
    evidence.probes.to_csv("probes.csv", index=False)
    evidence.accuracy.to_csv("accuracy.csv", index=False)
    for one in beside:
        value, ends = again(*re.findall(r'findings (\S+) "(.*)"', one.command)[0])
        assert value == pytest.approx(one.value)
        assert ends == pytest.approx((one.lower, one.upper))


def test_matrices_that_know_a_part_only_give_what_they_have() -> None:
    """As published ones: clean against attacked of each network, nothing between networks."""
    evidence = evidence_of(claimed())
    pairs = evidence.similarity.pairs
    model = np.array([key[0] for key in evidence.similarity.keys])
    value = np.where(model[:, None] == model[None], pairs.value, np.nan)
    part = replace(evidence.similarity, pairs=replace(pairs, value=value, replicates=None))
    found = findings(replace(evidence, similarity=part))
    assert {one.key for one in found if one.verdict == NOT_RUN} == {"4"}
    assert [one.value for one in found[1].differences] == [
        one.value for one in findings(evidence)[1].differences
    ]
    assert not [one for one in found[0].controls if "two_seeds" in one.key]
