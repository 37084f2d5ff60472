"""From what the user wishes to a study that is done."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from repsim.attacks import parse_attacks
from repsim.errors import UserError
from repsim.live.plan import LEAST
from repsim.probe import Settings as ProbeSettings
from repsim.progress import Progress, Silent
from repsim.study.graph import stages_of
from repsim.study.measure import NOISE, own_attack
from repsim.study.networks import combined, own_networks, preset_networks
from repsim.study.record import write_study
from repsim.study.run import Tell, run_here, run_processes
from repsim.study.settings import Settings, chosen, load_preset, override
from repsim.study.shared import SHARED
from repsim.study.stage import Records, closure
from repsim.study.study import Machine, Study
from repsim.study.temporary import remove_temporary


@dataclass(frozen=True)
class Wish:
    """A study as a user asks for it.

    Attributes:
        preset: its name, or a TOML file of the same form.
        folder: where all is kept.
        schemes: only these; all of the preset's if empty.
        seeds: another number than the preset's.
        data: another data set than the preset's.
        models: a TOML file of the user's own networks.
        settings: `KEY=VALUE` over the preset's.
        precision: "auto", "float32" or "bf16".
        command: as the user typed it, for the record.
    """

    preset: str = "demo"
    folder: Path = Path("universal-demo")
    schemes: Sequence[str] = ()
    seeds: int | None = None
    data: str | None = None
    models: Path | None = None
    settings: Sequence[str] = ()
    precision: str = "auto"
    command: str = "repsim reproduce universal"


@dataclass
class Prepared:
    """A study that is ready to run.

    Attributes:
        study: the study.
        records: of its stages.
        names: of the stages that are asked for, in order.
        command: the user's.
    """

    study: Study
    records: Records
    names: list[str]
    command: str
    _lock: object = field(default=None, repr=False)

    def to_do(self) -> list[str]:
        """Names of the stages that are not done, or that depend on one that is not."""
        return [name for name in self.names if not self.records.done(self.records.stages[name])]


def prepare(
    wish: Wish, machine: Machine, *, stop_after: str | None = None, progress: Progress | None = None
) -> Prepared:
    """The study that a user asks for; nothing is written.

    Raises:
        UserError: a mistake in the wish, or a data set that is not found.
    """
    settings = load_preset(wish.preset)
    if wish.data is not None:
        settings = replace(settings, data=wish.data)
    if wish.seeds is not None:
        settings = replace(settings, seeds=wish.seeds)
    settings = override(replace(settings, precision=wish.precision), wish.settings)
    if wish.schemes:
        settings = chosen(settings, wish.schemes)
    if wish.models is None:
        networks = preset_networks(settings)
    else:
        networks, also = own_networks(wish.models, wish.folder, settings)
        if also:
            networks = combined(networks, preset_networks(settings))
    study = Study(wish.folder.resolve(), settings, networks, machine, progress or Silent())
    names = [one.name for one in networks]
    for name in settings.compare.shared:
        if name not in names:
            raise UserError(
                f"compare.shared expects networks of the study, {', '.join(names)}; got {name!r}"
            )
    _check(settings, study)
    stages = stages_of(study, wish.command)
    return Prepared(
        study, Records(study.folder, stages), closure(stages, stop_after or "report"), wish.command
    )


def _check(settings: Settings, study: Study) -> None:
    """Refuse now what a stage would refuse in an hour.

    Raises:
        UserError: attacks, solvers or numbers of images that cannot be meant.
    """
    own = own_attack(study)
    if own.is_control or own.files or own.condition in (NOISE, SHARED):
        raise UserError(
            "compare.attack expects an attack on the network itself, of another name than "
            f"{NOISE} and {SHARED}; got {own.text}"
        )
    texts = settings.evaluate.attacks
    specs = [spec for text in texts for spec in parse_attacks(text, eps=study.eps)]
    names = [spec.condition for spec in specs]
    if not specs or len(set(names)) < len(names):
        raise UserError(
            "evaluate.attacks expects attacks of a name each; got "
            f"{', '.join(names) or 'none'}; name them apart with as=NAME"
        )
    samples = {"compare": settings.compare.samples, "within": settings.within.samples}
    for name, count in samples.items():
        if count < LEAST:
            raise UserError(f"{name}.samples expects at least {LEAST}; got {count}")
    if "clean" not in settings.probe.train_on:
        raise UserError(
            "probe.train_on expects clean among the conditions, whose probes are compared; got "
            f"{', '.join(settings.probe.train_on) or 'none'}"
        )
    try:
        ProbeSettings(solver=settings.probe.solver, **settings.probe.options).checked()
    except TypeError as error:
        raise UserError(f"probe.options: {error}") from error


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
        tell: called with a line for every stage that was made.

    Returns:
        The study's folder.

    Raises:
        UserError: a mistake in the wish, another run in the same folder, or what a stage finds.
    """
    prepared = prepare(wish, machine or Machine(), stop_after=stop_after, progress=progress)
    with claimed(prepared.study.folder):
        run(prepared, jobs=jobs, tell=tell or (lambda line: None))
    return prepared.study.folder


def run(prepared: Prepared, *, jobs: int, tell: Tell) -> None:
    """The stages that are not done, in a folder that is claimed."""
    study, records = prepared.study, prepared.records
    write_study(study, records, prepared.command)
    try:
        names = prepared.to_do()
        if jobs > 1 and len(names) > 1:
            run_processes(study, names, records, tell, jobs=jobs, command=prepared.command)
        else:
            run_here(study, names, records, tell)
    finally:
        write_study(study, records, prepared.command)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A study's folder for this process alone, without what a killed run left half-written.

    Raises:
        UserError: another process has it, or it cannot be made.
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
        remove_temporary(folder)
        yield
