"""What a dry run says: the schedule of the stages, and what each stage is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from study_small import PRESET, preset, ready

from repsim.study import steps as module
from repsim.study.estimate import _Cost, estimate
from repsim.study.networks import StudyNetwork
from repsim.study.schedule import duration
from repsim.study.stage import Stage, ordered
from repsim.study.steps import Architecture, Steps


def stages(**needs: str) -> dict[str, Stage]:
    return ordered([Stage(name, name, tuple(some.split()), {}, (), "") for name, some in
                    needs.items()])  # fmt: skip


def test_the_schedule_waits_for_what_a_stage_needs() -> None:
    """Two at a time: a and b, then c beside what is left of b; d has to wait for both."""
    known = stages(a="", b="", c="a", d="b c", e="d")
    took = {"a": 1.0, "b": 5.0, "c": 3.0, "d": 2.0, "e": 1.0}
    alone: list[str] = []

    def seconds(name: str, all_cores: bool) -> float:
        alone.extend([name] * all_cores)
        return took[name]

    assert duration(list(known), known, 2, seconds) == 5 + 2 + 1
    assert alone == ["d", "e"]
    assert duration(["c", "d"], known, 2, seconds) == 3 + 2  # the others are done
    assert duration(list(known), known, 1, seconds) == sum(took.values())
    assert duration([], known, 2, seconds) == 0


class Known(Steps):
    """Steps that need no measuring."""

    def architecture(self, network: StudyNetwork, layers: str) -> Architecture:
        return Architecture(1e-3, 3e-3, layers=5, features=1000, parameters=10)

    def product(self) -> float:
        return 1e-10


def cost(tmp_path: Path, *settings: str, name: str) -> float:
    prepared = ready(tmp_path / "study", preset(tmp_path), settings)
    study, stage = prepared.study, prepared.records.stages[name]
    return _Cost(study, Known(study, 1)).of(stage)[1]


def test_probes_by_steps_take_their_epochs(tmp_path: Path) -> None:
    def seconds(*settings: str) -> float:
        name = "probe-sl-st-0"
        return cost(tmp_path, "probe.solver=adam", "probe.train=200", *settings, name=name)

    short, long = seconds("probe.options.epochs=10"), seconds("probe.options.epochs=110")
    # Held: one forward; 200 images, 1,000 features, 10 classes and 3 strengths an epoch.
    assert long - short == pytest.approx(100 * 200 * 1000 * 10 * 3 * 1e-10)
    short, long = (
        seconds(f"probe.options.epochs={count}", "probe.options.hold=false") for count in (10, 110)
    )
    assert long - short == pytest.approx(100 * 200 * (1000 * 10 * 3 * 1e-10 + 1e-3))


def test_within_classes_takes_its_own_passes_where_nothing_is_kept(tmp_path: Path) -> None:
    """Three networks under four conditions, an attack of two steps."""
    passes = 3 * (4 * 1e-3 + 2 * 3e-3)
    same = cost(tmp_path, name="within")
    fewer = cost(tmp_path, "within.samples=40", name="within")
    batches = cost(
        tmp_path, "compare.samples=100", "compare.batch_size=20", "compare.memory=1000000",
        name="within",
    )  # fmt: skip
    assert same < 0.1
    assert fewer > 40 * passes
    assert batches > 50 * passes  # of the comparison each holds a batch


def test_a_step_has_the_threads_that_its_stage_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is measured again for another precision, or where that is asked for."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("repsim.study.run.cores", lambda: 4)
    seen: list[int] = []

    def measured(*given: object) -> dict[str, float]:
        seen.append(torch.get_num_threads())
        return {"forward": 1e-3, "backward": 3e-3, "layers": 5, "features": 9, "parameters": 9}

    monkeypatch.setattr(module, "_architecture", measured)
    monkeypatch.setattr(module, "_training", lambda *given: [1e-3])
    monkeypatch.setattr(module, "_product", lambda: {"seconds": 1e-10})
    before = torch.get_num_threads()
    file = preset(tmp_path)
    prepared = ready(tmp_path / "study", file, stop_after="compare")
    found = estimate(prepared, jobs=2)
    assert sorted(seen) == [2, 4]  # the comparison is alone
    assert torch.get_num_threads() == before
    rows = {row["name"]: row["seconds"] for row in found.rows}
    assert max(rows.values()) <= found.seconds <= sum(rows.values())
    estimate(prepared, jobs=2)
    assert len(seen) == 2
    estimate(prepared, jobs=2, again=True)
    assert len(seen) == 4
    text = PRESET.replace("seeds = 1", 'seeds = 1\nprecision = "bf16"')
    file = preset(tmp_path, text)
    estimate(ready(tmp_path / "study", file, stop_after="compare"), jobs=2)
    assert len(seen) == 6
    kept = json.loads((tmp_path / "study/steps.json").read_text()).values()
    assert {one["threads"] for one in kept} == {2, 4}
