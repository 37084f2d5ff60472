"""Stages as jobs: submitit's local executor, Slurm's parameters, and stages shared by processes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_small import PRESET, carry_on, preset, ready

from repsim.checkpoint import read_plain
from repsim.errors import UserError
from repsim.result.pairs import load_pairs
from repsim.study import cluster
from repsim.study.api import Prepared, claimed
from repsim.study.study import Machine, read_study
from repsim.study.submitted import write_submitted

submitit = pytest.importorskip("submitit")
NAMES = ["train-sl-st-0", "train-sl-at-0", "shared", "compare"]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    text = PRESET.replace('[[network]]\nname = "untrained"\n', "")
    return ready(tmp_path / "study", preset(tmp_path, text), stop_after="compare")


def test_jobs_of_the_local_executor_depend_on_one_another(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes; two share the comparison by torchrun; the same as without jobs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = prepared.study.folder
    folder.mkdir()
    prepared.study.machine = replace(prepared.study.machine, processes=2)
    found = cluster.submit(prepared, ["time=5"], cluster="local")
    assert list(found) == NAMES
    assert prepared.to_do() == []
    done = {s["name"] for s in read_study(folder)["stages"] if s["status"] == "done"}
    assert done == {*NAMES}  # as the last job wrote
    assert cluster.submit(prepared, cluster="local") == {}  # all is done
    alone = ready(folder.parent / "alone", folder.parent / "tiny.toml", stop_after="compare")
    carry_on(alone)
    ours, theirs = (load_pairs(f / "similarity.h5") for f in (folder, alone.study.folder))
    assert ours.keys == theirs.keys
    # Two processes share a batch, so trainings agree up to rounding, which grows with the steps.
    np.testing.assert_allclose(ours.pairs.value, theirs.pairs.value, atol=0.05)


class Executor:
    """What submitit's executor would have been told."""

    def __init__(self, folder: Path, cluster: str) -> None:
        self.told: dict[str, Any] = {}
        self.jobs: list[dict[str, Any]] = []

    def update_parameters(self, **given: Any) -> None:
        if "slurm_colour" in given:
            raise NameError("Unknown argument(s): colour")
        self.told |= given

    def submit(self, function: Any, *arguments: Any, last: bool) -> Any:
        self.jobs.append({**self.told, "stage": arguments[1], "settings": arguments[3],
                          "last": last})  # fmt: skip
        return type("Job", (), {"job_id": str(100 + len(self.jobs))})()


def test_jobs_of_slurm_wait_for_those_that_they_need(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Executor] = []

    def executor(folder: Path, cluster: str) -> Executor:
        made.append(Executor(folder, cluster))
        return made[0]

    monkeypatch.setattr(submitit, "AutoExecutor", executor)
    prepared.study.folder.mkdir()
    found = cluster.submit(
        prepared, ["partition=gpu", "time=240", "gpus_per_node=4", "slurm_account=me"]
    )
    assert found == dict(zip(NAMES, ["101", "102", "103", "104"], strict=True))
    jobs = {job["stage"]: job for job in made[0].jobs}
    waits = {name: job["slurm_additional_parameters"].get("dependency") for name, job in
             jobs.items()}  # fmt: skip
    assert waits == {
        "train-sl-st-0": None, "train-sl-at-0": None, "shared": "afterok:101:102",
        "compare": "afterok:101:102:103",
    }  # fmt: skip
    assert [job["last"] for job in jobs.values()] == [False, False, False, True]
    job = jobs["compare"]
    assert (job["slurm_partition"], job["timeout_min"], job["gpus_per_node"]) == ("gpu", 240, 4)
    assert (job["slurm_account"], job["name"]) == ("me", "compare")
    for wrong in ("partition", "colour=red"):
        with pytest.raises(UserError, match="--slurm"):
            cluster.submit(prepared, [wrong])


def test_without_slurm_it_says_so(prepared: Prepared) -> None:
    prepared.study.folder.mkdir()
    with pytest.raises(UserError, match="expects Slurm's sbatch on this machine"):
        cluster.submit(prepared)


def test_a_job_that_fails_says_which(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    from repsim.study.record import write_study

    folder = prepared.study.folder
    folder.mkdir()
    write_study(prepared.study, prepared.records)
    monkeypatch.setattr(
        cluster.subprocess, "run", lambda *given, **how: type("Ended", (), {"returncode": 1})()
    )  # fmt: skip
    with pytest.raises(UserError, match="stage train-sl-st-0: a process of 3 failed"):
        cluster.run_job(
            folder, "train-sl-st-0", Machine(device="cpu", processes=3), "study.json", last=False
        )


def test_the_same_command_again_is_refused_while_a_job_is_there(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is submitted twice, and what running jobs are writing stays."""
    folder = prepared.study.folder
    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    with claimed(folder):
        cluster.submit(prepared)
    states = {"101": "COMPLETED", "102": "RUNNING", "103": "PENDING", "104": "UNKNOWN"}
    monkeypatch.setattr(
        submitit.SlurmJob.watcher, "get_state", lambda job, mode="standard": states[job]
    )
    half = folder / ".similarity.h5.1@node7.tmp.h5"
    half.write_text("half")
    said = (
        r"3 of its jobs have not ended \(train-sl-at-0: job 102, RUNNING; shared: job 103, PENDING"
    )
    with pytest.raises(UserError, match=said), claimed(folder):
        pass
    assert half.exists()
    states |= dict.fromkeys(("102", "103", "104"), "FAILED")
    with claimed(folder):
        pass


def test_jobs_of_this_machine_are_known_by_their_processes(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    one = submitit.AutoExecutor(tmp_path / "jobs", cluster="local").submit(time.sleep, 1.5)
    write_submitted(tmp_path, "local", {"compare": one.job_id})
    with pytest.raises(UserError, match=f"compare: process {one.job_id}"), claimed(tmp_path):
        pass
    one.result()
    with claimed(tmp_path):
        pass


def test_jobs_keep_to_the_settings_they_were_submitted_with(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever study.json says by then."""
    folder = prepared.study.folder
    executor = Executor(folder, "slurm")
    monkeypatch.setattr(submitit, "AutoExecutor", lambda **given: executor)
    with claimed(folder):
        cluster.submit(prepared)
    settings = executor.jobs[0]["settings"]
    content = json.loads((folder / "study.json").read_text())
    content["settings"]["samples"] = 64
    (folder / "study.json").write_text(json.dumps(content))
    machine = Machine(device="cpu")
    assert cluster.run_job(folder, NAMES[0], machine, settings, last=False) == "made"
    assert NAMES[0] not in prepared.to_do()
    content = read_plain(folder / "checkpoints/sl-st-0.pt")
    assert content["data"]["samples"] == 192
