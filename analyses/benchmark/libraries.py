"""PGD-20 and AutoAttack against other libraries: the same images, network and settings, in turn.

    python analyses/benchmark/libraries.py                 # writes libraries.md and .json
    python analyses/benchmark/libraries.py --only pgd

A ratio is the median over the rounds of (the other library's time / repsim's beside it): how many
times as fast repsim is. 256 test images of CIFAR-10 that `repsim --data cifar10` would find; the
networks of checkpoints/. Strength at these settings is in strength.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import foolbox
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from benchmark import hardware
from floors import seconds
from pyautoattack import AutoAttack
from strength import Case
from torch import nn

from repsim import attacks
from repsim.attacks.fast import compiled
from repsim.runtime import Runtime

HERE = Path(__file__).parent
EPS, STEP = 8 / 255, 1 / 255


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    network: str
    what: str
    against: str
    goal: float | None
    ratio: float
    low: float
    high: float
    rounds: int
    ours: float
    theirs: float


def others(case: Case) -> dict[str, Callable[[], object]]:
    """PGD-20 of each library, as its documentation says to call it."""
    m, x, y = case.model, case.x, case.y
    ta = torchattacks.PGD(m, eps=EPS, alpha=STEP, steps=20, random_start=True)
    fm = foolbox.PyTorchModel(m, bounds=(0, 1))
    fb = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=20)
    wrong = foolbox.criteria.Misclassification(y)
    classifier = PyTorchClassifier(
        m, nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0, 1), device_type="cpu"
    )
    art = ProjectedGradientDescentPyTorch(
        classifier, eps=EPS, eps_step=STEP, max_iter=20, num_random_init=1, batch_size=len(x),
        verbose=False,
    )  # fmt: skip
    onehot = nn.functional.one_hot(y, 10).numpy()
    return {
        "torchattacks": lambda: ta(x, y),
        "foolbox": lambda: fb.run(fm, x, wrong, epsilon=EPS),
        "adversarial-robustness-toolbox": lambda: art.generate(x.numpy(), onehot),
    }


def pgd(case: Case, rounds: int) -> Iterator[Row]:
    runtime = Runtime.of("cpu")
    x = runtime.images(case.x)
    theirs = others(case)
    model = runtime.place(copy.deepcopy(case.model))  # theirs stays as it was loaded
    ours: dict[str, Callable[[], object]] = {}
    for precision in ("float32", "bf16"):
        half = Runtime.of("cpu", precision)
        with half.autocast():
            quick = compiled(model, x)
        for mode in ("represent", "evaluate"):
            for net, how in ((model, ""), (quick, ", compiled")):

                def work(net=net, mode=mode, half=half) -> object:
                    with half.autocast():
                        return attacks.pgd(net, x, case.y, mode=mode, step_size=STEP, ids=case.ids)

                ours[mode + how + (", bf16" if precision == "bf16" else "")] = work
    times: dict[str, list[float]] = {name: [] for name in (*ours, *theirs)}
    for i in range(rounds + 1):
        for name, work in {**ours, **theirs}.items():
            taken = seconds(work)
            if i:
                times[name].append(taken)
    fastest = min(theirs, key=lambda name: statistics.median(times[name]))
    for name in ours:
        goal = 1.5 if name.startswith("represent") else 8.0 if case.name == "st" else None
        for other in theirs:
            mark = f"{other} (fastest)" if other == fastest else other
            yield row(case.name, f"PGD-20, {name}", mark, goal if other == fastest else None,
                      times[name], times[other])  # fmt: skip


def autoattack(case: Case, rounds: int) -> Iterator[Row]:
    runtime = Runtime.of("cpu")
    x = runtime.images(case.x)
    model = runtime.place(copy.deepcopy(case.model))  # theirs stays as it was loaded
    ours, half, theirs = [], [], []

    def work(precision: str) -> object:
        with Runtime.of("cpu", precision).autocast():
            return attacks.autoattack(model, x, case.y, mode="evaluate", ids=case.ids)

    for _ in range(rounds):
        ours.append(seconds(lambda: work("float32")))
        half.append(seconds(lambda: work("bf16")))
        official = AutoAttack(case.model, eps=EPS, seed=0)
        theirs.append(
            seconds(lambda: official.run_standard_evaluation(case.x, case.y, batch_size=256))  # noqa: B023
        )
    goal = 10.0 if case.name == "st" else 1.5
    yield row(case.name, "AutoAttack standard", "pyautoattack", goal, ours, theirs)
    yield row(case.name, "AutoAttack standard, bf16", "pyautoattack", goal, half, theirs)


def row(
    network: str, what: str, against: str, goal: float | None, ours: list[float],
    theirs: list[float],
) -> Row:  # fmt: skip
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return Row(
        network, what, against, goal, statistics.median(ratios), ratios[0], ratios[-1],
        len(ratios), statistics.median(ours), statistics.median(theirs),
    )  # fmt: skip


def markdown(rows: list[Row], where: str) -> str:
    lines = [
        f"{where}, torch {torch.__version__}. How many times as fast repsim is: median of "
        "alternating rounds, in brackets the smallest and the largest. Made by libraries.py.",
        "",
        "| network | what | against | goal | times as fast | s | their s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        goal = f"≥ {r.goal:g}" if r.goal else ""
        lines.append(
            f"| {r.network} | {r.what} | {r.against} | {goal} | **{r.ratio:.2f}** [{r.low:.2f}, "
            f"{r.high:.2f}], {r.rounds} rounds | {r.ours:.2f} | {r.theirs:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["pgd", "autoattack"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=256)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    stored = HERE / "libraries.json"
    before = json.loads(stored.read_text())["rows"] if stored.exists() else []
    stages = {"pgd": "PGD", "autoattack": "AutoAttack"}
    rows = [Row(**r) for r in before if args.only and not r["what"].startswith(stages[args.only])]
    for name in ("st", "at"):
        case = Case(name, args.samples)
        if args.only in (None, "pgd"):
            rows += pgd(case, args.rounds)
        if args.only in (None, "autoattack"):
            rows += autoattack(case, 5 if name == "st" else 1)  # at: some ten minutes a round
    rows.sort(key=lambda r: (list(stages.values()).index(r.what.split("-")[0].split()[0]),
                             r.network != "st"))  # fmt: skip
    where = hardware(Runtime.of("cpu"))
    table = markdown(rows, where)
    stored.write_text(
        json.dumps({"hardware": where, "rows": [asdict(r) for r in rows]}, indent=1) + "\n"
    )
    (HERE / "libraries.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
