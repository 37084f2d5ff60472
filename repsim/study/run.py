"""Running a study's stages: one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from repsim import distributed
from repsim.errors import UserError
from repsim.progress import Lines
from repsim.study.grams import remove_unused
from repsim.study.graph import stages_of, work
from repsim.study.record import place, write_study
from repsim.study.stage import Records, Stage
from repsim.study.study import Machine, Study, cores, study_of

KEPT, MADE = "kept", "made"
Tell = Callable[[str], None]


def run_stage(study: Study, stage: Stage, records: Records) -> str:
    """Do a stage unless it is done; its record is written when its outputs are whole.

    Returns:
        "kept" or "made".

    Raises:
        UserError: a stage that it needs is not done, or a mistake that its work finds.
    """
    if records.done(stage):
        return KEPT
    key = records.key(stage)
    if key is None:
        missing = next(name for name in stage.needs if not records.done(records.stages[name]))
        raise UserError(f"stage {stage.name} expects {missing}, which is not done; run that first")
    if distributed.is_main():
        records.forget(stage)
    if stage.kind == "report":  # which reads it
        write_study(study, records)
    began, clock, processor = time.time(), time.monotonic(), time.process_time()
    info = {**place(study, training=stage.kind == "train"), **work(study, stage)}
    if distributed.is_main():
        records.write(
            stage, key, began, time.monotonic() - clock, time.process_time() - processor, info
        )
        if stage.kind == "within":  # the last that uses them
            remove_unused(study.folder, records)
    distributed.barrier()
    return MADE


def run_here(study: Study, names: Sequence[str], records: Records, tell: Tell) -> None:
    """One stage after the other in this process."""
    for name in names:
        began = time.monotonic()
        status = run_stage(study, records.stages[name], records)
        _said(tell, name, status, time.monotonic() - began)


def run_processes(
    study: Study, names: Sequence[str], records: Records, tell: Tell, *, jobs: int
) -> None:
    """Several stages at a time, each as soon as those that it needs are done.

    All that these need is among them or done. Processes share the cores; one that ends with an
    error lets the others finish what they have begun.

    Raises:
        UserError: the first that a stage raised.
    """
    waiting, running = list(names), dict[Future[str], str]()
    began: dict[str, float] = {}
    finished = set(records.stages) - set(names)
    failure: BaseException | None = None
    threads, all_threads = threads_of(jobs), threads_of(1)
    with (
        _fresh_threads(threads),
        ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (os.getpid(),)) as pool,
    ):
        while waiting or running:
            for name in list(waiting):
                stage = records.stages[name]
                if failure is not None or len(running) >= jobs:
                    break
                if not set(stage.needs) <= finished:
                    continue
                waiting.remove(name)
                if records.done(stage):
                    finished.add(name)
                    _said(tell, name, KEPT, 0.0)
                    continue
                began[name] = time.monotonic()
                alone = not running and not any_ready(waiting, records.stages, finished)
                running[pool.submit(
                    _stage_in_process, study.folder, name, study.machine,
                    all_threads if alone else threads,
                )] = name  # fmt: skip
            if failure is not None and not running:
                raise failure
            ended, _ = wait(running, return_when=FIRST_COMPLETED) if running else ((), ())
            for future in ended:
                name = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = UserError(
                        f"stage {name}: its process was ended from outside, perhaps for want of "
                        "memory; the same command goes on; try fewer --jobs"
                    )
                if error is not None:
                    failure = failure or error
                    continue
                finished.add(name)
                _said(tell, name, future.result(), time.monotonic() - began[name])


def any_ready(
    waiting: Sequence[str], stages: Mapping[str, Stage], finished: Collection[str]
) -> bool:
    """Whether any of some stages could run now."""
    return any(set(stages[name].needs) <= set(finished) for name in waiting)


def _said(tell: Tell, name: str, status: str, seconds: float) -> None:
    if status == MADE:
        tell(f"{name}: {seconds:.1f} s")


def threads_of(jobs: int) -> int:
    """Of each of several processes: what the user says, else their share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else max(1, cores() // jobs)


@contextmanager
def _fresh_threads(threads: int) -> Iterator[None]:
    """Processes that start here have so many threads each."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _begin(parent: int) -> None:
    """In a process of the pool: end with the one that started it, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_STUDIES: dict[Path, tuple[Study, Records]] = {}


def _stage_in_process(folder: Path, name: str, machine: Machine, threads: int) -> str:
    """In a process of the pool."""
    import torch

    torch.set_num_threads(threads)
    if folder not in _STUDIES:
        study = study_of(folder, machine)
        _STUDIES[folder] = study, Records(folder, stages_of(study))
    study, records = _STUDIES[folder]
    study.progress = Named(name)
    return run_stage(study, records.stages[name], records)


class Named(Lines):
    """Lines of one of several stages that run at a time: its name before each."""

    def __init__(self, name: str) -> None:
        super().__init__(every=30.0)
        self.name = name

    def row(self, row: dict[str, object]) -> None:
        """Nothing: the rows of several trainings side by side would be unreadable."""

    def say(self, text: str) -> None:
        """A line with the stage's name."""
        super().say(f"[{self.name}] {text}")
