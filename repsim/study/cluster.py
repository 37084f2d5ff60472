"""The stages of a study as jobs of a cluster, through submitit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repsim.errors import UserError
from repsim.study.graph import stages_of
from repsim.study.record import write_study
from repsim.study.run import MADE, run_stage
from repsim.study.stage import Records
from repsim.study.study import Machine, Study, study_of
from repsim.study.submitted import JOBS, write_submitted

if TYPE_CHECKING:
    from repsim.study.api import Prepared

_COMMON = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
_SHORT = {"time": "timeout_min", "mem": "mem_gb", "gpus": "gpus_per_node", "cpus": "cpus_per_task"}


def submit(
    prepared: Prepared, parameters: Sequence[str] = (), *, cluster: str = "slurm"
) -> dict[str, str]:
    """A job for each stage that is not done; each begins when those that it needs ended well.

    Jobs of Slurm are all queued at once and this returns; submitit's local executor, which knows
    no dependencies, gets each when those that it needs have ended. Jobs read a copy of the settings
    that nothing changes any more.

    Args:
        prepared: the study, in a folder that all machines see, and that is claimed.
        parameters: `KEY=VALUE` of the jobs: time (minutes), partition, gpus_per_node, ...
        cluster: "slurm", or "local" for processes on this machine.

    Returns:
        The jobs' ids by stage.

    Raises:
        UserError: no submitit, no Slurm, or parameters that it does not know.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--launcher slurm expects submitit; install it: pip install 'repsim-robustness[slurm]'"
        ) from error
    study, records = prepared.study, prepared.records
    names = prepared.to_do()
    executor = _executor(submitit, study.folder / JOBS, parameters, cluster)
    prepared.begin()
    if not names:
        return {}
    settings = _frozen(study)
    jobs: dict[str, Any] = {}
    for name in names:
        needed = [jobs[need] for need in records.stages[name].needs if need in jobs]
        if cluster == "slurm":
            extra = {}
            if needed:
                ids = ":".join(dict.fromkeys(job.job_id for job in needed))
                extra = {"dependency": f"afterok:{ids}", "kill-on-invalid-dep": "yes"}
            executor.update_parameters(name=name, slurm_additional_parameters=extra)
        else:
            for job in needed:
                job.result()
        jobs[name] = executor.submit(
            run_job, study.folder, name, study.machine, settings, last=name == names[-1]
        )
        write_submitted(study.folder, cluster, {one: str(job.job_id) for one, job in jobs.items()})
    if cluster != "slurm":
        for job in jobs.values():
            job.result()
    return {name: str(job.job_id) for name, job in jobs.items()}


def _executor(submitit: Any, folder: Path, parameters: Sequence[str], cluster: str) -> Any:
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise UserError(
            f"--launcher slurm expects Slurm's sbatch on this machine; {error}"
        ) from error
    given: dict[str, Any] = {"timeout_min": 24 * 60}
    for text in parameters:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise UserError(f"--slurm expects KEY=VALUE, such as partition=gpu; got {text!r}")
        key = _SHORT.get(key.strip(), key.strip()).replace("-", "_")
        name = key if key in _COMMON or key.startswith("slurm_") else f"slurm_{key}"
        given[name] = int(value) if value.isdecimal() else value
    try:
        executor.update_parameters(**given)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"--slurm: submitit does not take {', '.join(parameters)}: {said}"
        ) from error
    return executor


def _frozen(study: Study) -> str:
    """A copy of the settings, below a name that no other settings have; relative to the folder."""
    content = {
        "settings": study.settings.to_json(),
        "networks": [one.to_json() for one in study.networks],
        "command": study.command,
    }
    text = json.dumps(content, sort_keys=True)
    name = f"{JOBS}/settings-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    study.write_json(name, content)
    return name


def run_job(folder: Path, name: str, machine: Machine, settings: str, *, last: bool) -> str:
    """In a job: one stage, by several processes where it can be shared.

    Args:
        folder: the study's.
        name: of the stage.
        machine: where it runs.
        settings: the file of `_frozen`.
        last: of all that were submitted: then study.json says what was done.

    Raises:
        UserError: as `run_stage`, or a process of several that failed.
    """
    study = study_of(folder, machine, file=settings)
    records = Records(folder, stages_of(study))
    stage = records.stages[name]
    if machine.processes == 1 or not stage.parallel:
        status = run_stage(study, stage, records)
    else:
        status = _by_processes(folder, name, machine, settings)
    if last:
        write_study(study, records)
    return status


def _by_processes(folder: Path, name: str, machine: Machine, settings: str) -> str:
    plain = {key: str(value) if isinstance(value, Path) else value
             for key, value in asdict(machine).items()}  # fmt: skip
    plain["checkpoints"] = [str(path) for path in machine.checkpoints]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         "--nproc-per-node", str(machine.processes), "-m", "repsim.study", str(folder), name,
         json.dumps(plain), settings],
        check=False,
    )  # fmt: skip
    if ended.returncode:
        raise UserError(f"stage {name}: a process of {machine.processes} failed; see its output")
    return MADE
