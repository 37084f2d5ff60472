"""Findings' numbers against loops over cells, the paper's table, and their commands."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from findings_reference import (
    CONDITIONS,
    EPS,
    Loops,
    accuracy_of,
    jackknife,
    networks_of,
    pairs_of,
    random_evidence,
    random_pairs,
    said_of,
    said_twice,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from repsim.errors import UserError
from repsim.findings import (
    Evidence,
    Finding,
    Network,
    Number,
    findings,
    findings_from_json,
    paper_numbers,
)
from repsim.findings.again import again
from repsim.findings.agreements import Predictions
from repsim.findings.blocks import best_block, block_weights
from repsim.findings.cells import Similarities, weights
from repsim.findings.desk import Desk
from repsim.findings.evidence import reach_of
from repsim.findings.full_at import full_at
from repsim.findings.paper import Paper, agrees
from repsim.findings.quantity import Quantity, Source, Term, combine, constant, mean, parse
from repsim.findings.ranks import TURNS, rank_correlation, rank_interval, ranks

CLOSE = 1e-6


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return random_evidence()


@pytest.fixture(scope="module")
def found(evidence: Evidence) -> list[Finding]:
    return findings(evidence)


def only(numbers: list[Number], **wanted: str) -> Number:
    """The one number that has these attributes."""
    these = [
        one for one in numbers if all(getattr(one, key) == value for key, value in wanted.items())
    ]
    assert len(these) == 1, (wanted, [(one.key, one.scheme, one.scenario) for one in these])
    return these[0]


def same(number: Number, values: np.ndarray) -> None:
    value, lower, upper = jackknife(values)
    assert number.value == pytest.approx(value, abs=CLOSE)
    assert number.lower == pytest.approx(lower, abs=CLOSE)
    assert number.upper == pytest.approx(upper, abs=CLOSE)


def seeds(scheme: str, scenario: str) -> list[str]:
    return [f"{scheme}-{scenario}-{seed}" for seed in range(2 if scenario != "full-at" else 1)]


SCHEMES = ("sl", "scl", "cl")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_finding_1_is_what_loops_give(
    evidence: Evidence, found: list[Finding], scheme: str
) -> None:
    loops, within = Loops(evidence.similarity), Loops(evidence.within)
    one, names = found[0], seeds(scheme, "st")

    def over(make) -> np.ndarray:
        return sum(make(name) for name in names) / len(names)

    expected = {
        "alignment_mean": lambda name: loops.diagonal(name, "clean", "pgd"),
        "alignment_first_two_thirds": lambda name: loops.start(name, "clean", "pgd"),
        "alignment_last_third": lambda name: loops.end(name, "clean", "pgd"),
        "alignment_final": lambda name: loops.diagonal(name, "clean", "pgd", loops.layers - 1),
    }
    for key, make in expected.items():
        number = only(one.numbers, key=key, scheme=scheme)
        same(number, over(make))
        values = [make(name)[0] for name in names]
        assert (number.seed_lower, number.seed_upper) == pytest.approx((min(values), max(values)))
        assert number.spread == pytest.approx(max(values) - min(values))
        assert number.networks == tuple(names)

    def further(name: str) -> np.ndarray:
        return loops.diagonal(name, "clean", "noise") - expected["alignment_mean"](name)

    moved = only(one.differences, key="noise_less_attack", scheme=scheme)
    same(moved, over(further))
    # Of the differences, not of a side: noise and attack are of one network.
    assert moved.spread == pytest.approx(np.ptp([further(name)[0] for name in names]))
    fall = only(one.differences, key="fall_at_the_end", scheme=scheme)
    same(fall, over(lambda n: loops.start(n, "clean", "pgd") - loops.end(n, "clean", "pgd")))
    each = [(loops.start(n, "clean", "pgd") - loops.end(n, "clean", "pgd"))[0] for n in names]
    assert fall.spread == pytest.approx(max(each) - min(each))
    same(
        only(one.controls, key="alignment_last_third_noise", scheme=scheme),
        over(lambda name: loops.end(name, "clean", "noise")),
    )
    same(
        only(one.controls, key="alignment_mean_within_class", scheme=scheme),
        over(lambda name: within.diagonal(name, "clean", "pgd")),
    )
    same(
        only(one.controls, key="noise_less_attack_within_class", scheme=scheme),
        over(lambda n: within.diagonal(n, "clean", "noise") - within.diagonal(n, "clean", "pgd")),
    )
    same(
        only(one.controls, key="alignment_last_third_two_seeds", scheme=scheme),
        loops.cross(*names, "clean", "last third"),
    )
    two = only(one.controls, key="alignment_last_third_two_seeds", scheme=scheme)
    assert (two.spread, two.seed_lower) == (None, None)  # one pair
    same(
        only(one.controls, key="alignment_mean_untrained"),
        loops.diagonal("untrained", "clean", "pgd"),
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_finding_2_is_what_loops_give(
    evidence: Evidence, found: list[Finding], scheme: str
) -> None:
    loops, within = Loops(evidence.similarity), Loops(evidence.within)

    def gain(make) -> np.ndarray:
        at, st_ = (sum(make(n) for n in seeds(scheme, s)) / 2 for s in ("at", "st"))
        return at - st_

    for key, make in (
        ("alignment_mean", lambda n: loops.diagonal(n, "clean", "pgd")),
        ("alignment_last_third", lambda n: loops.end(n, "clean", "pgd")),
    ):
        number = only(found[1].differences, key=f"{key}_at_less_st", scheme=scheme)
        same(number, gain(make))
        ranges = [np.ptp([make(n)[0] for n in seeds(scheme, s)]) for s in ("at", "st")]
        assert number.spread == pytest.approx(max(ranges))
    same(
        only(found[1].controls, key="alignment_last_third_noise_at_less_st", scheme=scheme),
        gain(lambda n: loops.end(n, "clean", "noise")),
    )
    same(
        only(found[1].controls, key="alignment_last_third_within_class_at_less_st", scheme=scheme),
        gain(lambda n: within.end(n, "clean", "pgd")),
    )
    at = seeds(scheme, "at")
    same(
        only(found[1].numbers, key="noise_less_attack_at", scheme=scheme),
        sum(loops.end(n, "clean", "noise") - loops.end(n, "clean", "pgd") for n in at) / 2,
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_finding_3_is_what_loops_give(
    evidence: Evidence, found: list[Finding], scheme: str
) -> None:
    loops, within = Loops(evidence.similarity), Loops(evidence.within)

    def gain(make) -> np.ndarray:
        at, st_ = (sum(make(n) for n in seeds(scheme, s)) / 2 for s in ("at", "st"))
        return at - st_

    one = found[2]
    same(
        only(one.differences, key="long_range_at_less_st", scheme=scheme),
        gain(lambda n: loops.far(n, "clean")),
    )
    same(
        only(one.differences, key="block_structure_st_less_at", scheme=scheme),
        -gain(lambda n: loops.blocks(n, "clean")),
    )
    same(
        only(one.numbers, key="plain_contrast_st_less_at", scheme=scheme),
        -gain(lambda n: loops.blocks(n, "clean", plain=True)),
    )
    attacked = [
        n for n in one.numbers if n.conditions == ("pgd",) and n.scheme == scheme
        and (n.key, n.scenario) == ("long_range", "at")
    ]  # fmt: skip
    same(attacked[0], sum(loops.far(n, "pgd") for n in seeds(scheme, "at")) / 2)
    same(
        only(one.controls, key="long_range_within_class", scheme=scheme),
        gain(lambda n: within.far(n, "clean")),
    )
    same(
        only(one.controls, key="block_structure_noise", scheme=scheme),
        -gain(lambda n: loops.blocks(n, "noise")),
    )
    same(only(one.controls, key="long_range_untrained"), loops.far("untrained", "clean"))


@pytest.mark.parametrize(("one", "other"), list(combinations(SCHEMES, 2)))
def test_finding_4_is_what_loops_give(
    evidence: Evidence, found: list[Finding], one: str, other: str
) -> None:
    loops, within = Loops(evidence.similarity), Loops(evidence.within)
    name = f"{one} & {other}"

    def between(scenario: str, condition: str, part: str, source: Loops = loops) -> np.ndarray:
        both = product(seeds(one, scenario), seeds(other, scenario))
        return sum(source.cross(a, b, condition, part) for a, b in both) / 4

    parts = {
        "cross_mean": "all pairs", "cross_diagonal": "diagonal", "cross_final": "final",
        "cross_last_third_block": "last third block", "cross_last_third_diagonal": "last third",
    }  # fmt: skip
    finding = found[3]
    for (key, part), (reading, condition) in product(
        parts.items(), (("clean", "clean"), ("own", "pgd"), ("shared", "shared"))
    ):
        sides = {s: between(s, condition, part) for s in ("at", "st")}
        for scenario, values in sides.items():
            number = only(finding.numbers, key=f"{key}_{reading}", scheme=name, scenario=scenario)
            same(number, values)
            assert number.layers == part
        decides = reading != "clean" and key in ("cross_mean", "cross_last_third_block")
        place = finding.differences if decides else finding.numbers
        gain = only(place, key=f"{key}_{reading}_at_less_st", scheme=name)
        same(gain, sides["at"] - sides["st"])
        if reading == "clean":
            continue
        noise = between("at", "noise", part) - between("st", "noise", part)
        beyond = only(finding.numbers, key=f"{key}_{reading}_beyond_noise", scheme=name)
        same(beyond, sides["at"] - sides["st"] - noise)
        pairs_ = {
            s: [(loops.cross(a, b, condition, part) - loops.cross(a, b, "noise", part))[0]
                for a, b in product(seeds(one, s), seeds(other, s))] for s in ("st", "at")
        }  # fmt: skip
        assert beyond.spread == pytest.approx(max(np.ptp(each) for each in pairs_.values()))
    st_, at = (
        [loops.cross(a, b, "pgd", "all pairs")[0]
         for a, b in product(seeds(one, s), seeds(other, s))] for s in ("st", "at")
    )  # fmt: skip
    number = only(finding.differences, key="cross_mean_own_at_less_st", scheme=name)
    assert number.spread == pytest.approx(max(np.ptp(st_), np.ptp(at)))
    same(
        only(finding.controls, key="cross_mean_noise_at_less_st", scheme=name),
        between("at", "noise", "all pairs") - between("st", "noise", "all pairs"),
    )
    same(
        only(finding.controls, key="cross_mean_own_within_class_at_less_st", scheme=name),
        between("at", "pgd", "all pairs", within) - between("st", "pgd", "all pairs", within),
    )


def test_finding_4_holds_seeds_against_schemes(evidence: Evidence, found: list[Finding]) -> None:
    loops = Loops(evidence.similarity)

    def seeds_gain(scheme: str) -> np.ndarray:
        at, st_ = (loops.cross(*seeds(scheme, s), "shared", "final") for s in ("at", "st"))
        return at - st_

    def gain(one: str, other: str) -> np.ndarray:
        return sum(
            sign * loops.cross(a, b, "shared", "final") / 4
            for sign, s in ((1, "at"), (-1, "st"))
            for a, b in product(seeds(one, s), seeds(other, s))
        )

    same(
        only(found[3].controls, key="cross_final_shared_beyond_two_seeds"),
        sum(gain(a, b) for a, b in combinations(SCHEMES, 2)) / 3
        - sum(seeds_gain(one) for one in SCHEMES) / 3,
    )
    same(
        only(found[3].controls, key="cross_final_shared_two_seeds_at_less_st", scheme="scl"),
        seeds_gain("scl"),
    )
    untrained = only(
        found[3].controls, key="cross_mean_clean_untrained", scheme="cl", scenario="at"
    )
    same(
        untrained,
        sum(loops.cross("untrained", b, "clean", "all pairs") for b in seeds("cl", "at")) / 2,
    )


def test_finding_5_is_what_loops_give(evidence: Evidence, found: list[Finding]) -> None:
    loops = Loops(evidence.similarity)
    low, high, usual = ["sl-at-eps2-0"], ["sl-at-eps16-0"], seeds("sl", "at")

    def end(names: list[str]) -> np.ndarray:
        return sum(loops.end(n, "clean", "pgd") for n in names) / len(names)

    def more(names: list[str]) -> np.ndarray:
        return end(names) - sum(loops.start(n, "clean", "pgd") for n in names) / len(names)

    rise = only(found[4].differences, key="rise_last_third")
    same(rise, end(high) - end(low))
    # The ends have one seed each; that of the usual budget stands in.
    assert rise.spread == pytest.approx(np.ptp([loops.end(n, "clean", "pgd")[0] for n in usual]))
    assert rise.spread_from == "seeds trained at 8/255"
    assert rise.scenario == "16/255 - 2/255"
    same(only(found[4].differences, key="rise_most_at_end"), more(high) - more(low))
    first = only(found[4].numbers, key="rise_last_third", scenario="8/255 - 2/255")
    same(first, end(usual) - end(low))
    second = only(found[4].numbers, key="rise_last_third", scenario="16/255 - 8/255")
    assert first.value + second.value == pytest.approx(rise.value, abs=CLOSE)
    most, other = (first, second) if first.value > second.value else (second, first)
    assert found[4].reason.endswith(
        f"In sl most comes with the step {most.scenario}, {most.text()}; {other.scenario} adds "
        f"{other.text()}, {other.outcome}."
    )
    short = [
        replace(one, reach=0.05) if one.name == "sl-at-eps16-0" else
        replace(one, reach=one.eps) for one in evidence.networks
    ]  # fmt: skip
    notes = findings(replace(evidence, networks=short))[4].notes
    assert [note for note in notes if "goes" in note] == [
        "sl-at-eps16-0: its training attack goes 12.75/255 at most, not its eps 16/255."
    ]


def test_finding_6_is_the_rank_correlation_of_scipy(
    evidence: Evidence, found: list[Finding]
) -> None:
    loops = Loops(evidence.similarity)
    right = evidence.accuracy.query("condition == 'pgd'").set_index("network")["accuracy"]
    trained = [one.name for one in evidence.networks if one.scenario != "untrained"]

    def of(chosen: list[list[str]], condition: str) -> float:
        """Means over the networks of a recipe, then ranks of the recipes."""
        alike = [np.mean([loops.end(n, "clean", condition)[0] for n in names]) for names in chosen]
        return spearmanr(alike, [right[names].mean() for names in chosen]).statistic

    for key, names in (
        ("rank_correlation_all", trained),
        ("rank_correlation_at", [name for name in trained if "-st-" not in name]),
    ):
        number = only(found[5].differences, key=key)
        assert number.over == "networks"
        assert number.interval == "Fisher"
        assert set(number.networks) == set(names)
        recipes: dict[str, list[str]] = {}
        for name in names:
            recipes.setdefault(re.sub(r"-\d$", "", name), []).append(name)
        rho = of(list(recipes.values()), "pgd")
        assert number.value == pytest.approx(rho, abs=CLOSE)
        half = 1.959963985 * math.sqrt((1 + rho**2 / 2) / (len(recipes) - 3))
        expected = [math.tanh(math.atanh(rho) + sign * half) for sign in (-1, 1)]
        assert [number.lower, number.upper] == pytest.approx(expected, abs=CLOSE)
        # One seed of each recipe, in every combination.
        turns = [of([[one] for one in each], "pgd") for each in product(*recipes.values())]
        assert len(turns) == 2 ** sum(len(seeds_) == 2 for seeds_ in recipes.values())
        assert number.spread == pytest.approx(np.ptp(turns), abs=CLOSE)
        assert (number.seed_lower, number.seed_upper) == pytest.approx((min(turns), max(turns)))
        control = only(found[5].controls, key=f"{key}_noise")
        assert control.value == pytest.approx(of(list(recipes.values()), "noise"), abs=CLOSE)
        words = number.label.partition("robust accuracy, ")[2]
        strong = ", as strongly" if control.value >= rho else ""
        assert re.search(
            re.escape(f"{control.text()} in {words}{strong}") + r"[;.]", found[5].reason
        )


def test_finding_7_is_what_loops_give(evidence: Evidence, found: list[Finding]) -> None:
    loops = Loops(evidence.similarity)

    def alike(scheme: str) -> np.ndarray:
        return loops.cross(f"{scheme}-at-0", f"{scheme}-full-at-0", "clean", "diagonal")

    def moves(scheme: str, condition: str = "clean") -> np.ndarray:
        """The full-at network of seed 0 began as the at network of seed 0, not of another."""
        full, at = (loops.far(f"{scheme}-{s}-0", condition) for s in ("full-at", "at"))
        return full - at

    for scheme in SCHEMES:
        seeds_apart = loops.cross(*seeds(scheme, "at"), "clean", "diagonal")
        number = only(found[6].differences, key="full_at_beyond_two_seeds", scheme=scheme)
        same(number, seeds_apart - alike(scheme))
        assert number.spread_from is None
        for condition, word in (("clean", ""), ("pgd", "attacked_")):
            same(
                only(found[6].numbers, key=f"long_range_{word}full_less_at", scheme=scheme),
                moves(scheme, condition),
            )
    for other in ("sl", "scl"):
        same(
            only(found[6].numbers, key="at_full_at_alike", scheme=other),
            alike(other) - alike("cl"),
        )
        ours, theirs = moves("cl"), moves(other)
        same(
            only(found[6].numbers, key="long_range_moves", scheme=other),
            np.sign(ours[0]) * ours - np.sign(theirs[0]) * theirs,
        )
    same(
        only(found[6].numbers, key="cross_last_third_block_shared_at_full_at", scheme="scl"),
        loops.cross("scl-at-0", "scl-full-at-0", "shared", "last third block"),
    )
    same(
        only(found[6].controls, key="cross_diagonal_clean_two_seeds", scheme="sl"),
        loops.cross(*seeds("sl", "at"), "clean", "diagonal"),
    )


def test_full_at_of_a_seed_of_its_own_is_held_against_all_at_seeds(evidence: Evidence) -> None:
    other = [
        replace(one, seed=7) if one.scenario == "full-at" else one for one in evidence.networks
    ]
    one = full_at(Desk(replace(evidence, networks=other), 0.02, "blocks18"))
    loops = Loops(evidence.similarity)
    at = sum(loops.far(name, "clean") for name in seeds("cl", "at")) / 2
    same(
        only(one.numbers, key="long_range_full_less_at", scheme="cl"),
        loops.far("cl-full-at-0", "clean") - at,
    )


@pytest.mark.parametrize(
    ("kind", "reading", "condition"),
    [("prediction", "own", "pgd"), ("prediction", "shared", "shared"), ("probe", "own", "pgd")],
)
def test_finding_8_is_what_loops_give(
    evidence: Evidence, found: list[Finding], kind: str, reading: str, condition: str
) -> None:
    """Each image by itself; a mean over pairs of networks; at less st without every G-th image."""
    table = evidence.predictions if kind == "prediction" else evidence.probe_predictions
    start = "" if kind == "prediction" else "layer6|"

    def between(one: str, other: str, scenario: str, what: str) -> np.ndarray:
        both = product(seeds(one, scenario), seeds(other, scenario))
        return sum(
            said_twice(table, f"{start}{a}:{condition}", f"{start}{b}:{condition}", what)
            for a, b in both
        ) / 4  # fmt: skip

    for one, other in combinations(SCHEMES, 2):
        for what in ("both wrong", "agreement", "kappa"):
            sides = {s: between(one, other, s, what) for s in ("at", "st")}
            key = f"{kind}_{what.replace(' ', '_')}_{reading}"
            place = found[7].differences if what == "both wrong" else found[7].numbers
            wanted = {"scheme": f"{one} & {other}", "layers": "layer6" if start else "output"}
            gain = only(place, key=f"{key}_at_less_st", **wanted)
            same(gain, sides["at"] - sides["st"])
            assert gain.interval == "jackknife"
            for scenario, values in sides.items():
                same(only(found[7].numbers, key=key, scenario=scenario, **wanted), values)
        # The same images for at and st: those that all four networks of two seeds get wrong.
        each, least = np.zeros(51), len(table)
        for i, j in product((0, 1), (0, 1)):
            four = {s: [f"{start}{one}-{s}-{i}:{condition}", f"{start}{other}-{s}-{j}:{condition}"]
                    for s in ("at", "st")}  # fmt: skip
            columns = [*four["at"], *four["st"]]
            wrong = table[columns].ne(table["label"], axis=0).all(axis=1)
            least = min(least, int(wrong.sum()))
            kept = table.where(wrong, -1)  # where nothing is wrong all have their label, -1
            each += said_twice(kept, *four["at"], "both wrong") / 4
            each -= said_twice(kept, *four["st"], "both wrong") / 4
        gain = only(found[7].controls, key=f"{kind}_all_wrong_{reading}_at_less_st", **wanted)
        same(gain, each)
        assert gain.samples == least
    assert "layer0" in {number.layers for number in found[7].numbers}
    assert {number.layers for number in found[7].differences} == {"layer6", "output"}


def test_every_number_is_made_again_by_its_command(
    evidence: Evidence, found: list[Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repsim.result.pairs import save_pairs

    monkeypatch.chdir(tmp_path)
    save_pairs("similarity.h5", evidence.similarity)
    save_pairs("within.h5", evidence.within)
    evidence.predictions.to_csv("predictions.csv", index=False)
    evidence.probe_predictions.to_csv("probe_predictions.csv", index=False)
    evidence.accuracy.to_csv("accuracy.csv", index=False)
    words = re.compile(r'python -m repsim\.findings (\S+)(?: (\S+:\S+))? "(.*)"')
    sources: dict[str, Source] = {
        "similarity.h5": Similarities(evidence.similarity),
        "within.h5": Similarities(evidence.within, "within.h5"),
        "predictions.csv": Predictions(evidence.predictions),
        "probe_predictions.csv": Predictions(evidence.probe_predictions),
    }
    tried = 0
    for finding in found:
        for place, number in enumerate([*finding.numbers, *finding.controls, *finding.differences]):
            file, accuracy, text = words.fullmatch(number.command).groups()
            if accuracy is None and place % 150:
                made = parse(text, sources[file])  # as `again`, without reading the file again
                value, interval = made.value, made.interval()
            else:
                value, interval = again(file, *([accuracy] if accuracy else []), text)
            assert value == pytest.approx(number.value, abs=CLOSE)
            if number.lower is None:
                assert interval is None
            else:
                assert interval == pytest.approx((number.lower, number.upper), abs=1e-5)
            tried += 1
    assert tried > 400
    command = found[1].differences[0].command
    said = subprocess.run(
        [sys.executable, "-m", "repsim.findings", *re.findall(r'(\S+\.h5) "(.*)"', command)[0]],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert float(said.split()[0]) == pytest.approx(found[1].differences[0].value, abs=CLOSE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.h5", "[final](a:x, b:x)"], "no such file"),
        (["predictions.csv", "[prediction](a:pgd, nobody:pgd)"], "not there"),
        (["predictions.csv", "nonsense"], "terms such as"),
        (["predictions.csv", ""], "at least one term"),
        (["predictions.csv", "a", "b", "c"], "one number"),
        (["predictions.csv", "accuracy.csv", "ranks"], "ranks expect"),
        (
            [
                "predictions.csv",
                "accuracy.csv:pgd",
                "ranks [final](clean, pgd): nobody, other + one",
            ],
            "not there: nobody, other, one",
        ),
        (["old.csv", "[prediction](a:pgd, b:pgd)"], "a column label, the images' classes"),
    ],
)
def test_a_wrong_number_is_refused_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from repsim.findings.__main__ import main

    monkeypatch.chdir(tmp_path)
    networks = networks_of(("sl",))
    said = said_of(networks, lambda one: 0.5, lambda one: 0.5, images=10)
    said.to_csv("predictions.csv", index=False)
    said.drop(columns="label").to_csv("old.csv", index=False)
    accuracy_of(networks, lambda one: 0.5).to_csv("accuracy.csv", index=False)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert main(["--help"]) == 0


def test_json_keeps_everything(found: list[Finding]) -> None:
    text = json.dumps([one.to_json() for one in found], allow_nan=False)
    assert findings_from_json(text) == found
    assert findings_from_json(json.loads(text)) == found
    undefined = Number("a", "b", math.nan)
    assert undefined.to_json()["value"] is None
    assert math.isnan(Number.from_json(undefined.to_json()).value)
    assert undefined.text() == "not defined"


# Parts of a matrix.


@given(st.integers(3, 12), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_thirds_are_parts_of_the_diagonal(layers: int, seed: int) -> None:
    value = np.random.default_rng(seed).normal(size=(layers, layers))
    start, end, whole = (
        weights(part, value) for part in ("first two thirds", "last third", "diagonal")
    )
    third = max(layers // 3, 1)
    assert whole == pytest.approx(((layers - third) * start + third * end) / layers)
    assert (end > 0).sum() == third
    far = weights("long range", value)
    assert far == pytest.approx(far.T)
    assert far.sum() == pytest.approx(1)


def test_nan_cells_count_for_nothing() -> None:
    value = np.arange(16.0).reshape(4, 4)
    value[1] = value[:, 1] = np.nan
    found = weights("diagonal", value)
    assert found[1, 1] == 0
    assert np.nansum(found * value) == pytest.approx((0 + 10 + 15) / 3)
    assert weights("diagonal", np.full((3, 3), np.nan)) is None


def test_networks_of_other_layers_have_no_diagonal() -> None:
    value = np.ones((4, 5))
    assert weights("diagonal", value) is None
    assert weights("last third block", value).shape == (4, 5)
    with pytest.raises(UserError, match="a part of a matrix"):
        weights("first", value)
    networks = [Network("a", "sl", "st", 0), Network("b", "cl", "st", 0)]
    pairs = pairs_of(networks, 3, np.ones((24, 24)), None, [1])
    pairs.keys[12:15] = [("b", "clean", f"other{i}") for i in range(3)]
    source = Similarities(pairs)
    assert source.find("diagonal", "a:clean", "b:clean") is None
    assert source.find("all pairs", "a:clean", "b:clean").value == pytest.approx(1)


@pytest.mark.parametrize("layers", [4, 5, 8, 11, 13])
def test_block_structure_is_what_loops_give(layers: int) -> None:
    pairs = random_pairs([Network("a", "sl", "st", 0)], layers, seed=layers)
    found = Similarities(pairs).block_structure("a:clean")
    values = Loops(pairs).blocks("a", "clean")
    assert found.value == pytest.approx(values[0], abs=CLOSE)
    assert found.replicates == pytest.approx(values[1:], abs=CLOSE)


@given(st.integers(4, 14), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_matrix_of_distance_alone_has_no_blocks(layers: int, seed: int) -> None:
    curve = np.random.default_rng(seed).uniform(size=layers)
    i, j = np.indices((layers, layers))
    value = curve[abs(i - j)]
    a, b = best_block(value)
    assert (block_weights(value, a, b) * value).sum() == pytest.approx(0, abs=1e-9)
    assert block_weights(value, a, b).diagonal() == pytest.approx(0)


def test_a_run_is_a_quarter_to_three_quarters_of_the_layers_rounded_inwards() -> None:
    """Of 11 layers 3 to 8: blocks of 9 and of 2 stand out, and are no runs."""
    for first, last in ((0, 9), (9, 11)):
        value = np.full((11, 11), 0.2)
        value[first:last, first:last] = 0.9
        np.fill_diagonal(value, 1.0)
        for plain in (False, True):
            a, b = best_block(value, plain=plain)
            assert 3 <= b - a <= 8


@given(st.integers(4, 24), st.integers(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_run_is_shorter_or_longer(layers: int, seed: int, plain: bool) -> None:
    value = np.random.default_rng(seed).normal(size=(layers, layers))
    a, b = best_block((value + value.T) / 2, plain=plain)
    assert layers <= 4 * (b - a) <= 3 * layers
    assert 2 <= b - a <= layers - 2


@given(st.integers(0, 8), st.integers(3, 6), st.floats(0.1, 0.5))
@settings(max_examples=40, deadline=None)
def test_a_planted_block_is_found_and_grows_with_contrast(
    first: int, size: int, height: float
) -> None:
    layers, last = 12, min(first + size, 12)
    value = np.full((layers, layers), 0.3)
    value[first:last, first:last] += height
    np.fill_diagonal(value, 1.0)
    if last - first < 3:
        return
    assert best_block(value) == (first, last)

    def structure(matrix: np.ndarray) -> float:
        return float((block_weights(matrix, first, last) * matrix).sum())

    assert 0 < structure(value) <= height + 1e-12
    # Linear in the height: what is taken away for distance is a projection.
    assert structure(0.3 + 2 * (value - 0.3)) == pytest.approx(2 * structure(value))


def test_a_single_odd_layer_makes_no_block_of_the_rest() -> None:
    value = np.full((12, 12), 0.9)
    value[11] = value[:, 11] = 0.2
    np.fill_diagonal(value, 1.0)
    first, last = best_block(value)
    assert 3 <= last - first <= 9


def test_blocks_leave_undefined_layers_out() -> None:
    value = np.full((9, 9), 0.2)
    value[4:, 4:] = 0.9
    np.fill_diagonal(value, 1.0)
    value[2] = value[:, 2] = np.nan
    a, b = best_block(value)
    found = block_weights(value, a, b)
    assert (a, b) == (4, 9)
    assert np.isfinite(found).all()
    assert not found[2].any()
    assert best_block(value[:3, :3]) is None
    assert block_weights(value, 0, 9) is None
    assert block_weights(value, 0, 1) is None


# Combinations.


def test_a_combination_is_linear_replicate_by_replicate(evidence: Evidence) -> None:
    source = Similarities(evidence.similarity)
    a = source.find("last third", "sl-at-0:clean", "sl-at-0:pgd")
    b = source.find("last third", "sl-st-0:clean", "sl-st-0:pgd")
    both = mean([a, b]) - 0.5 * a
    assert both.value == pytest.approx(b.value / 2)
    assert both.replicates == pytest.approx(b.replicates / 2)
    assert both.text() == "0.5 [last third](sl-st-0:clean, sl-st-0:pgd)"
    one_less = constant(1.0) - a
    assert one_less.replicates == pytest.approx(1 - a.replicates)
    again_ = parse(one_less.text(), source)
    assert again_.replicates == pytest.approx(one_less.replicates)
    assert (a - a).value == 0
    assert combine([(1 / 3, a), (2 / 3, b)]).value == pytest.approx(
        parse(combine([(1 / 3, a), (2 / 3, b)]).text(), source).value, abs=1e-9
    )


def test_ends_that_are_not_symmetric_stay_so() -> None:
    def one(value: float, lower: float, upper: float) -> Quantity:
        term = Term("accuracy of prediction", f"{value}:x", f"{value}:x")
        none = np.zeros(0, dtype=np.int64)
        return Quantity(((1.0, term),), value, None, none, (lower, upper), "predictions.csv", 100)

    a, b = one(0.0, 0.0, 0.04), one(0.5, 0.4, 0.6)
    assert mean([a, b]).interval() == pytest.approx((0.2, 0.32))
    assert mean([a, a, a]).interval() == pytest.approx((0.0, 0.04))
    assert (a - b).interval() == pytest.approx((-0.6, -0.36))
    assert (constant(1.0) - a).interval() == pytest.approx((0.96, 1.0))
    assert mean([a, b]).method == "exact binomial"
    assert (a - constant(1.0)).samples == 100


def test_a_paired_difference_is_narrower_than_an_independent_one() -> None:
    networks = networks_of(("sl",), full=False, budgets=False, untrained=False)
    count = len(networks) * 4 * 3
    shared = np.random.default_rng(0).normal(size=8)[:, None, None] * 0.05
    value = np.full((count, count), 0.5)
    pairs = pairs_of(networks, 3, value, value - (shared - shared.mean()), [10] * 8)
    source = Similarities(pairs)
    a, b = (source.find("diagonal", f"sl-{s}-0:clean", f"sl-{s}-0:pgd") for s in ("at", "st"))
    lower, upper = a.interval()
    assert upper - lower > 0.05
    assert (a - b).interval() == pytest.approx((0, 0), abs=1e-12)


# The paper's numbers.


def test_the_papers_table_is_the_reference(evidence: Evidence) -> None:
    table = paper_numbers()
    assert list(table.columns) == ["quantity", "a", "b", "layers", "value"]
    assert len(table) == 214
    paper = Paper(evidence)

    def term(part: str, x: str, y: str) -> float | None:
        return paper.term(Term(part, x, y))

    assert term("last third", "sl-st-1:clean", "sl-st-1:pgd") == 0.5457
    assert term("diagonal", "sl-at-0:pgd", "sl-at-0:clean") == 0.9897
    assert term("final", "sl-at-eps2-0:clean", "sl-at-eps2-0:pgd") == 0.8395
    assert term("last third", "sl-at-eps16-0:clean", "sl-at-eps16-0:pgd") == 0.9726
    assert term("long range", "cl-full-at-0:clean", "cl-full-at-0:clean") == 0.4708
    assert term("all pairs", "sl-at-0:pgd", "cl-at-1:pgd") == 0.6502
    assert term("all pairs", "cl-at-1:pgd", "sl-at-0:pgd") == 0.6502
    assert term("last third block", "scl-st-0:pgd", "cl-st-0:pgd") == 0.2198
    assert term("diagonal", "cl-at-0:pgd", "cl-full-at-0:pgd") == 0.7496
    # The mean over 18 layers is that of 12 and of 6.
    start = term("first two thirds", "sl-st-0:clean", "sl-st-0:pgd")
    assert (12 * start + 6 * 0.5457) / 18 == pytest.approx(0.7683)
    # A budget of about a quarter of the usual one, and one of neither.
    for eps, value in ((0.26 * EPS, 0.8395), (0.5 * EPS, None), (2.5 * EPS, None)):
        networks = [
            replace(one, eps=eps) if one.name == "sl-at-eps2-0" else one
            for one in evidence.networks
        ]
        other = Paper(replace(evidence, networks=networks, eps=EPS))
        found = other.term(Term("final", "sl-at-eps2-0:clean", "sl-at-eps2-0:pgd"))
        assert found == value
    for absent in (
        ("all pairs", "sl-at-0:clean", "cl-at-0:clean"),
        ("all pairs", "sl-at-0:shared", "cl-at-0:shared"),
        ("diagonal", "sl-at-0:clean", "sl-at-0:noise"),
        ("diagonal", "untrained:clean", "untrained:pgd"),
        ("diagonal", "sl-at-0:pgd", "sl-at-1:pgd"),
        ("block 2:5", "sl-at-0:clean", "sl-at-0:clean"),
    ):
        assert term(*absent) is None
    assert Paper(evidence, "all147").term(
        Term("final", "cl-at-0:clean", "cl-at-0:pgd")
    ) == 0.8412  # fmt: skip


def test_the_papers_number_stands_beside(found: list[Finding]) -> None:
    gain = only(found[1].differences, key="alignment_last_third_at_less_st", scheme="sl")
    assert gain.paper == pytest.approx(0.9731 - 0.5457)
    assert gain.paper_layers == "blocks18"
    own = only(found[3].differences, key="cross_mean_own_at_less_st", scheme="sl & cl")
    assert own.paper == pytest.approx(0.6502 - 0.3522)
    shared = only(found[3].differences, key="cross_mean_shared_at_less_st", scheme="sl & cl")
    assert (shared.paper, shared.paper_layers, shared.agrees) == (None, None, None)
    rise = only(found[4].differences, key="rise_last_third")
    assert rise.paper == pytest.approx(0.9726 - 0.9274)
    within = only(found[0].controls, key="alignment_mean_within_class", scheme="sl")
    assert within.paper is None
    moved = only(found[6].numbers, key="long_range_full_less_at", scheme="cl")
    assert moved.paper == pytest.approx(0.4708 - 0.6455)


@pytest.mark.parametrize(
    ("value", "paper", "difference", "expected"),
    [
        (0.3, None, True, None),
        (math.nan, 0.3, True, None),
        (0.3, 0.4, True, "same direction, similar size"),
        (0.1, 0.4, True, "same direction, smaller"),
        (-0.9, -0.4, True, "same direction, larger"),
        (0.3, -0.4, True, "other direction"),
        (0.3, 0.01, True, "no difference in the paper"),
        (0.01, 0.3, True, "no difference here"),
        (-0.01, 0.01, True, "no difference in both"),
        (0.95, 0.9, False, "close"),
        (0.5, 0.9, False, "smaller by 0.40"),
        (0.9, 0.5, False, "larger by 0.40"),
    ],
)
def test_agreement_with_the_paper_in_words(
    value: float, paper: float | None, difference: bool, expected: str | None
) -> None:
    assert agrees(value, paper, difference=difference) == expected


# Ranks.


@given(st.lists(st.integers(0, 6), min_size=4, max_size=12), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rank_correlation_is_scipys(x: list[int], seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=len(x)).tolist()
    if len(set(x)) == 1:
        assert math.isnan(rank_correlation(x, y))
    else:
        assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_rank_interval_covers() -> None:
    """Spearman's ρ of two normals of correlation r is 6/π·asin(r/2) in the long run."""
    generator = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.6 / 2)
    inside = 0
    for _ in range(500):
        x = generator.normal(size=20)
        y = 0.6 * x + 0.8 * generator.normal(size=20)
        lower, upper = rank_interval(rank_correlation(x, y), 20)
        inside += lower <= truth <= upper
    assert 0.92 < inside / 500 < 0.985


def test_rank_interval_of_perfect_order_is_not_a_point() -> None:
    lower, upper = rank_interval(1.0, 6)
    assert lower < 0.9
    assert upper == 1.0
    assert rank_interval(-1.0, 6) == pytest.approx((-1.0, -lower))
    assert rank_interval(0.5, 3) is None
    assert rank_interval(math.nan, 9) is None
    narrow, wide = rank_interval(0.5, 12), rank_interval(0.5, 6)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


# Evidence.


def test_at_means_the_usual_budget() -> None:
    evidence = random_evidence(layers=4)
    assert evidence.eps == pytest.approx(EPS, abs=1e-5)
    assert [one.name for one in evidence.group("sl", "at")] == ["sl-at-0", "sl-at-1"]
    assert [one.name for one in evidence.group("sl", "at", 2 / 255)] == ["sl-at-eps2-0"]
    assert evidence.budgets("sl") == pytest.approx([2 / 255, EPS, 16 / 255])
    assert evidence.schemes("st", "at") == ["sl", "scl", "cl"]
    # Of unknown sizes all are one recipe, whose seeds must differ.
    unknown = [replace(one, eps=None, seed=i) for i, one in enumerate(evidence.networks)]
    blind = Evidence(unknown, evidence.similarity, own="pgd")
    assert blind.eps is None
    assert len(blind.group("sl", "at")) == 4
    # One of an unknown size counts as usual, and as no other.
    some = [replace(one, eps=None) if one.name == "sl-at-1" else one for one in evidence.networks]
    mixed = Evidence(some, evidence.similarity, own="pgd")
    assert len(mixed.group("sl", "at")) == 2
    assert len(mixed.group("sl", "at", 2 / 255)) == 1
    # Of sizes that are equally usual the middle one.
    names = ("sl-at-eps16-0", "sl-at-0", "sl-at-eps2-0")
    three = [one for one in evidence.networks if one.name in names]
    assert Evidence(three, evidence.similarity, own="pgd").eps == pytest.approx(EPS, abs=1e-5)
    assert Evidence(three, evidence.similarity, own="pgd", eps=2 / 255).group("sl", "at") == [
        one for one in three if "eps2" in one.name
    ]


def test_evidence_that_does_not_fit_is_refused() -> None:
    networks = networks_of(("sl",), full=False, budgets=False, untrained=False)
    pairs = random_pairs(networks, 2)
    with pytest.raises(UserError, match="twice: sl-st-0"):
        Evidence([*networks, networks[0]], pairs, own="pgd")
    with pytest.raises(UserError, match="there: other"):
        Evidence([*networks, Network("other", "sl", "st", 5)], pairs, own="pgd")
    with pytest.raises(UserError, match="scenario expects"):
        Network("a", "sl", "adversarial", 0)
    evidence = Evidence(networks, pairs, own="pgd")
    with pytest.raises(UserError, match="margin expects"):
        findings(evidence, margin=-0.1)
    with pytest.raises(UserError, match="paper_layers expects"):
        findings(evidence, paper_layers="blocks")
    said = said_of(networks, lambda one: 0.5, lambda one: 0.5, images=10)
    evidence.predictions = said.drop(columns="label")
    with pytest.raises(UserError, match=r"predictions\.csv: expected .* a column label"):
        findings(evidence)
    evidence.predictions, evidence.probe_predictions = said, said.drop(columns="label")
    with pytest.raises(UserError, match=r"probe_predictions\.csv: expected .* a column label"):
        findings(evidence)


def test_two_networks_of_one_recipe_and_seed_are_refused() -> None:
    networks = networks_of(("sl",), full=False, budgets=False, untrained=False)
    pairs = random_pairs([*networks, Network("again", "sl", "at", 1, EPS)], 2)
    with pytest.raises(UserError, match="sl-at-1 and again do not; give one another seed") as said:
        Evidence([*networks, Network("again", "sl", "at", 1, EPS + 1e-9)], pairs, own="pgd")
    assert "\n" not in str(said.value)
    for other in (
        Network("again", "sl", "at", 2, EPS), Network("again", "sl", "at", 1, 2 * EPS),
        Network("again", "sl", "at", 1, EPS, "resnet50"), Network("again", "sl", "full-at", 1, EPS),
        Network("again", "cl", "at", 1, EPS),
    ):  # fmt: skip
        Evidence([*networks, other], pairs, own="pgd")


def test_networks_of_another_architecture_are_no_seeds(evidence: Evidence) -> None:
    wide = [
        Network("wide-st", "sl", "st", 2, None, "wide"),
        Network("wide-at", "sl", "at", 0, EPS, "wide"),
        Network("wide-2", "sl", "at", 0, 2 / 255, "wide"),
    ]  # fmt: skip
    usual = [replace(one, arch="usual") for one in evidence.networks]
    both = replace(
        evidence, networks=[*wide, *usual], similarity=random_pairs([*wide, *usual]), within=None,
        arch=None,
        accuracy=accuracy_of([*wide, *usual], lambda one: len(one.name) + one.seed / 3),
    )  # fmt: skip
    assert both.arch == "usual"
    assert [one.name for one in both.group("sl", "st")] == ["sl-st-0", "sl-st-1"]
    assert len(both.usual()) == len(usual)
    told = findings(both)
    for one in told:
        names = {
            name for n in [*one.numbers, *one.controls, *one.differences] for name in n.networks
        }
        assert names.isdisjoint({"wide-st", "wide-at", "wide-2"}) == (one.key != "6")
        said = "wide-at is left out: its architecture, wide, is not that of most networks."
        assert (said in one.notes) == (one.key != "6")
    # Among the ranks they are recipes of their own.
    all_ = only(told[5].differences, key="rank_correlation_all")
    recipes = all_.command.partition("): ")[2].rstrip('"').split(", ")
    assert {"wide-st", "wide-at", "wide-2", "sl-st-0 + sl-st-1"} <= set(recipes)
    assert "14 recipes, means over their 20 networks." in told[5].notes[2]


def test_partial_at_has_the_encoder_of_at_and_no_rank_of_its_own(evidence: Evidence) -> None:
    partial = Network("cl-partial-at-0", "cl", "partial-at", 0, EPS)
    networks = [*evidence.networks, partial]
    more = replace(
        evidence, networks=networks, similarity=random_pairs(networks),
        accuracy=accuracy_of(networks, lambda one: len(one.name) + one.seed / 3),
    )  # fmt: skip
    one = ranks(Desk(more, 0.02, "blocks18"))
    assert not [n for n in [*one.numbers, *one.controls, *one.differences]
                if partial.name in n.networks]  # fmt: skip
    assert "partial-at networks are left out: their encoders are those of at networks." in one.notes
    assert any(note.startswith("full-at networks begin as at networks") for note in one.notes)


def test_many_seeds_are_drawn_for_the_spread_of_ranks() -> None:
    """Of 3 seeds in 8 recipes there are 6,561 combinations; 4,096 of them are looked at."""
    networks = [
        Network(f"{scheme}-{scenario}-{seed}", scheme, scenario, seed, None)
        for scheme in ("a", "b", "c", "d") for scenario in ("st", "at") for seed in range(3)
    ]  # fmt: skip
    assert TURNS < 3**8
    generator = np.random.default_rng(3)
    evidence = Evidence(
        networks, random_pairs(networks, 3), own="pgd",
        accuracy=accuracy_of(networks, lambda one: float(generator.uniform())),
    )  # fmt: skip
    number = only(ranks(Desk(evidence, 0.02, "blocks18")).differences, key="rank_correlation_all")
    assert -1 <= number.seed_lower < number.value < number.seed_upper <= 1
    again_ = only(ranks(Desk(evidence, 0.02, "blocks18")).differences, key="rank_correlation_all")
    assert again_ == number


@pytest.mark.parametrize(
    ("settings_", "expected"),
    [
        ({"eps": 16 / 255, "steps": 5, "step_size": 0.01, "start": "clean"}, 0.05),
        ({"eps": 8 / 255, "steps": 5, "step_size": 0.01, "start": "clean"}, 8 / 255),
        ({"eps": 16 / 255, "steps": 5, "step_size": 0.01, "start": "random"}, 16 / 255),
        ({"eps": 16 / 255, "steps": 5, "step_size": None, "start": "clean"}, 16 / 255),
        ({"eps": 16 / 255}, 16 / 255),
        ({"steps": 5}, None),
    ],
)
def test_how_far_an_attack_goes(settings_: dict[str, object], expected: float | None) -> None:
    assert reach_of(settings_) == (None if expected is None else pytest.approx(expected))


def test_conditions_are_as_expected() -> None:
    """The reference and the evidence speak of the same ones."""
    assert CONDITIONS == ("clean", "noise", "pgd", "shared")
    assert accuracy_of(networks_of(("sl",)), lambda one: 0.5)["condition"].isin(
        ["clean", "pgd"]
    ).all()  # fmt: skip
