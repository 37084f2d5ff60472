"""The jobs that a study has on a cluster: while one of them is there, nothing else may run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repsim.errors import UserError
from repsim.files import host, replacing
from repsim.study.temporary import runs

JOBS = "jobs"
FILE = f"{JOBS}/submitted.json"


def write_submitted(folder: Path, cluster: str, jobs: Mapping[str, str]) -> None:
    """Write down which jobs were submitted.

    Args:
        folder: the study's, with its folder `jobs`.
        cluster: "slurm" or "local".
        jobs: ids by stage.
    """
    with replacing(folder / FILE) as beside:
        content = {"cluster": cluster, "host": host(), "jobs": dict(jobs)}
        beside.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def refuse_while_alive(folder: Path) -> None:
    """Refuse a folder in which jobs of an earlier submission may still write.

    Raises:
        UserError: names them, and says what to do.
    """
    try:
        content = json.loads((folder / FILE).read_text("utf-8"))
    except (OSError, ValueError):  # none, or one that was never whole
        return
    if alive := _alive(folder / JOBS, content):
        first = "; ".join(alive[:3]) + ("; ..." if len(alive) > 3 else "")
        raise UserError(
            f"--out {folder}: {len(alive)} of its jobs have not ended ({first}); wait for them or "
            f"cancel them; where they are gone, remove {folder / FILE}"
        )


def _alive(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """`STAGE: job ID, STATE` of those that are not known to have ended."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            f"{folder.parent / FILE} names jobs, whose end only submitit can tell; install it: "
            "pip install 'repsim-robustness[slurm]', or remove that file where they are gone"
        ) from error
    jobs: dict[str, str] = content["jobs"]
    if content["cluster"] == "slurm":
        # All are made before the first is asked for, so that one call of sacct answers for all.
        known: dict[str, Any] = {
            stage: submitit.SlurmJob(folder, job) for stage, job in jobs.items()
        }
        return [
            f"{stage}: job {job.job_id}, {job.state}" for stage, job in known.items()
            if not job.done()
        ]  # fmt: skip
    # submitit itself knows its local jobs in the process alone that began them; their ids are pids.
    elsewhere = content["host"] != host()
    return [
        f"{stage}: process {job}" for stage, job in jobs.items()
        if not submitit.LocalJob(folder, job).paths.result_pickle.exists()
        and (elsewhere or runs(int(job)))
    ]  # fmt: skip
