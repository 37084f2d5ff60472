"""A study of three networks on a few digits, seconds long, for the tests of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from repsim.result.pairs import load_pairs
from repsim.study.api import Prepared, claimed, prepare, run
from repsim.study.command import Wish
from repsim.study.study import Machine

PRESET = """
about = "A few digits"
data = "digits"
model = "resnet8"
samples = 192
seeds = 1

[encoder]
batch_size = 64
epochs = 2
augment = "none"

[evaluate]
attacks = ["pgd,steps=2"]
samples = 50

[compare]
attack = "pgd,steps=2"
samples = 50
groups = 4

[within]
samples = 50

[probe]
train = 100

[[network]]
name = "sl-st"
recipe = "cpu-sl-st"

[[network]]
name = "sl-at"
recipe = "cpu-sl-at"
encoder = { attack = "pgd,steps=1" }

[[network]]
name = "untrained"
"""


def preset(folder: Path, text: str = PRESET) -> Path:
    """The preset as a file."""
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def ready(
    folder: Path, file: Path, settings: Sequence[str] = (), stop_after: str = "findings",
    **machine: object,
) -> Prepared:  # fmt: skip
    """The study in a folder, not run."""
    wish = Wish(str(file), folder, settings=settings)
    return prepare(wish, Machine(device="cpu", **machine), stop_after=stop_after)  # type: ignore[arg-type]


def carry_on(prepared: Prepared, jobs: int = 1) -> list[str]:
    """Run it; names of the stages that were made."""
    made: list[str] = []
    with claimed(prepared.study.folder):
        run(prepared, jobs=jobs, tell=lambda line: made.append(line.partition(":")[0]))
    return made


def numbers(folder: Path) -> dict[str, object]:
    """All that a study measured, to be compared to the bit."""
    pairs = load_pairs(folder / "similarity.h5")
    return {
        "similarity": pairs.pairs.value,
        "replicates": pairs.pairs.replicates,
        "within": load_pairs(folder / "within.h5").pairs.value,
        **{name: pd.read_csv(folder / name) for name in
           ("accuracy.csv", "agreement.csv", "probes.csv", "predictions.csv")},
        "findings": (folder / "findings.json").read_text(),
    }  # fmt: skip


def assert_same(a: dict[str, object], b: dict[str, object]) -> None:
    """To the bit."""
    for name, value in a.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, b[name], check_exact=True)  # type: ignore[arg-type]
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, b[name])  # type: ignore[arg-type]
        else:
            assert value == b[name]
