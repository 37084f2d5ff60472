"""From what the user wishes to a study that is done."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from repsim.errors import UserError
from repsim.progress import Progress, Silent
from repsim.study.check import check_layers, check_own, check_settings
from repsim.study.command import Wish, command_of, keep_given
from repsim.study.graph import stages_of
from repsim.study.networks import preset_networks
from repsim.study.own import combined, own_networks
from repsim.study.record import write_study
from repsim.study.run import Tell, run_here, run_processes
from repsim.study.settings import chosen, load_preset, override
from repsim.study.stage import Records, closure
from repsim.study.study import Machine, Study
from repsim.study.submitted import refuse_while_alive
from repsim.study.temporary import remove_temporary
from repsim.study.unanswered import unanswered


@dataclass
class Prepared:
    """A study that is ready to run.

    Attributes:
        wish: what the user asked for.
        study: the study.
        records: of its stages.
        names: of the stages that are asked for, in order.
        notes: what the user should know before anything runs, a line each.
    """

    wish: Wish
    study: Study
    records: Records
    names: list[str]
    notes: list[str] = field(default_factory=list)

    def to_do(self) -> list[str]:
        """Names of the stages that are not done, or that depend on one that is not."""
        return [name for name in self.names if not self.done(name)]

    def done(self, name: str) -> bool:
        """Whether a stage is done under the present settings."""
        return self.records.done(self.records.stages[name])

    def begin(self) -> None:
        """Write what is known before any stage runs, in a folder that is claimed."""
        keep_given(self.wish, self.study.settings, self.study.networks)
        write_study(self.study, self.records)


def prepare(
    wish: Wish, machine: Machine, *, stop_after: str | None = None, progress: Progress | None = None
) -> Prepared:
    """The study that a user asks for; nothing is written.

    Raises:
        UserError: a mistake in the wish, or a data set that is not found.
    """
    settings, folder = load_preset(wish.preset), wish.place
    given = {key: getattr(wish, key) for key in ("data", "seeds", "precision")}
    settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
    settings = override(settings, wish.settings)
    if wish.schemes:
        settings = chosen(settings, wish.schemes)
    if wish.models is None:
        networks = preset_networks(settings)
    else:
        networks, also = own_networks(wish.models, folder, settings)
        if also:
            networks = combined(networks, preset_networks(settings))
    study = Study(
        folder, settings, networks, machine, progress or Silent(),
        command_of(wish, settings, machine),
    )  # fmt: skip
    check_settings(study)
    layers, notes = check_layers(study)
    stages = stages_of(study)
    records = Records(study.folder, stages)
    notes += check_own(study, records)
    names = closure(stages, stop_after or "report")
    if "findings" in names:
        notes += unanswered(study, layers)
    return Prepared(wish, study, records, names, notes)


def reproduce(
    wish: Wish,
    machine: Machine | None = None,
    *,
    stop_after: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Path:
    """Run a study to its report; what is done already is kept.

    Args:
        wish: the study.
        machine: where it runs.
        stop_after: name of the last stage wanted, or of a kind of stages.
        jobs: stages at a time; with 1 they run in this process.
        progress: told of the work, where stages run in this process.
        tell: called with a line for what to know before, and for every stage that was made.

    Returns:
        The study's folder.

    Raises:
        UserError: a mistake in the wish, another run in the same folder, or what a stage finds.
    """
    prepared = prepare(wish, machine or Machine(), stop_after=stop_after, progress=progress)
    tell = tell or (lambda line: None)
    for note in prepared.notes:
        tell(note)
    with claimed(prepared.study.folder):
        run(prepared, jobs=jobs, tell=tell)
    return prepared.study.folder


def run(prepared: Prepared, *, jobs: int, tell: Tell) -> None:
    """The stages that are not done, in a folder that is claimed."""
    study, records = prepared.study, prepared.records
    prepared.begin()
    try:
        names = prepared.to_do()
        if jobs > 1 and len(names) > 1:
            run_processes(study, names, records, tell, jobs=jobs)
        else:
            run_here(study, names, records, tell)
    finally:
        write_study(study, records)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A study's folder for this process alone, without what a killed run left half-written.

    Raises:
        UserError: another process or jobs of a cluster have it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise UserError(
            f"--out {folder} expects a folder that can be written; {error.strerror}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--out {folder}: another repsim reproduce is running there; wait for its end, or "
                "give another folder"
            ) from error
        refuse_while_alive(folder)
        remove_temporary(folder)
        yield
