"""A stage of a study: what it depends on, what it leaves, and whether that is still good.

Beside each stage's outputs stands `stages/NAME.json` with the hash of all that it depends on (the
contents of its inputs, its settings, the version of its format) and the hashes of the outputs. A
stage is done where both are as they were; anything else makes it again, and nothing else does.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repsim import __version__
from repsim.errors import UserError
from repsim.files import replacing, sha256_of

# Raised where a stage leaves something else for the same inputs and settings.
FORMATS = {
    "train": 1, "evaluate": 1, "shared": 1, "compare": 1, "within": 1, "probe": 2, "accuracy": 1,
    "agreement": 2, "findings": 2, "report": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One piece of a study.

    Attributes:
        name: `KIND` or `KIND-NETWORK`.
        kind: a key of `FORMATS`.
        needs: names of the stages whose outputs it reads.
        settings: plain values that decide what it leaves, beside those inputs.
        outputs: files that it leaves, relative to the study's folder.
        command: what makes it, to be typed in the study's folder.
        network: of which network, where it is of one.
        parallel: whether several processes can share it (torchrun).
    """

    name: str
    kind: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    outputs: tuple[str, ...]
    command: str
    network: str | None = None
    parallel: bool = False


@dataclass
class Records:
    """What is known of the stages of a study's folder.

    Attributes:
        folder: the study's.
        stages: by name.
    """

    folder: Path
    stages: Mapping[str, Stage]
    _hashes: dict[tuple[str, int, int], str] = field(default_factory=dict, repr=False)

    def key(self, stage: Stage) -> str | None:
        """Hash of what a stage depends on; None while one that it needs is not done."""
        inputs: dict[str, Any] = {}
        for name in stage.needs:
            needed = self.stages[name]
            if not self.done(needed):
                return None
            record = self.read(needed)
            assert record is not None
            inputs[name] = {path: entry["sha256"] for path, entry in record["outputs"].items()}
        about = {
            "kind": stage.kind, "format": FORMATS[stage.kind], "settings": stage.settings,
            "inputs": inputs,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def done(self, stage: Stage) -> bool:
        """Whether a stage's outputs are there, whole, and of what it depends on now."""
        record = self.read(stage)
        if record is None or set(record["outputs"]) != set(stage.outputs):
            return False
        for path, entry in record["outputs"].items():
            file = self.folder / path
            if not file.is_file() or self._sha256(file) != entry["sha256"]:
                return False
        return bool(record["key"] == self.key(stage))

    def read(self, stage: Stage) -> dict[str, Any] | None:
        """A stage's record; None where there is none that can be read."""
        try:
            record = json.loads(self._path(stage).read_text("utf-8"))
            return record if {"key", "outputs", "seconds"} <= set(record) else None
        except (OSError, ValueError):
            return None

    def forget(self, stage: Stage) -> None:
        """Before a stage runs: what it leaves is not trusted until it is whole."""
        self._path(stage).unlink(missing_ok=True)

    def write(
        self, stage: Stage, key: str, began: float, seconds: float, processor: float,
        info: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """After a stage: what it left, and of what.

        Args:
            stage: the stage.
            key: of what it read.
            began: seconds since 1970 at its start.
            seconds: that it took.
            processor: seconds of all cores of this process together: what it would take of a core
                of its own where others use the machine as well.
            info: plain values for the reader.

        Raises:
            UserError: an output that is not there.
        """
        outputs = {}
        for path in stage.outputs:
            file = self.folder / path
            if not file.is_file():
                raise UserError(f"stage {stage.name} was expected to leave {path}; it did not")
            outputs[path] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        record = {
            "stage": stage.name,
            "kind": stage.kind,
            "key": key,
            "format": FORMATS[stage.kind],
            "repsim_version": __version__,
            "needs": list(stage.needs),
            "settings": stage.settings,
            "outputs": outputs,
            "command": stage.command,
            "began": began,
            "seconds": round(seconds, 2),
            "processor_seconds": round(processor, 2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began + seconds)),
            **info,
        }
        self._path(stage).parent.mkdir(exist_ok=True)
        with replacing(self._path(stage)) as beside:
            beside.write_text(json.dumps(record, indent=2) + "\n", "utf-8")

    def _path(self, stage: Stage) -> Path:
        return self.folder / "stages" / f"{stage.name}.json"

    def _sha256(self, file: Path) -> str:
        """A file's hash, computed again only when the file has changed."""
        state = file.stat()
        known = str(file), state.st_size, state.st_mtime_ns
        if known not in self._hashes:
            self._hashes[known] = sha256_of(file)
        return self._hashes[known]


def ordered(stages: Sequence[Stage]) -> dict[str, Stage]:
    """By name; each after those that it needs.

    Raises:
        ValueError: a stage before one that it needs, or two of one name.
    """
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.name in found or not set(stage.needs) <= set(found):
            raise ValueError(f"stage {stage.name} is out of order")
        found[stage.name] = stage
    return found


def closure(stages: Mapping[str, Stage], last: str) -> list[str]:
    """Names of the stages up to `last`: a stage, or a kind with all that its stages need.

    Raises:
        UserError: neither.
    """
    wanted = [s.name for s in stages.values() if last in (s.name, s.kind)]
    if not wanted:
        kinds = list(dict.fromkeys(s.kind for s in stages.values()))
        raise UserError(
            f"--stop-after expects one of {', '.join(kinds)}, or one of a single network such as "
            f"{next(iter(stages))}; got {last!r}"
        )
    kept: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept.add(name)
            wanted += stages[name].needs
    return [name for name in stages if name in kept]
