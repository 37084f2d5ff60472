"""The command that makes a study again, and what it needs, in the study's own folder.

The page and the tables say commands that are typed inside the folder. So a preset or networks that
came from TOML files, and the user's own code, are kept there too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repsim.data.load import DEFAULT_ROOT, ENVIRONMENT
from repsim.errors import UserError
from repsim.files import replacing
from repsim.study.networks import StudyNetwork
from repsim.study.own import seen_from
from repsim.study.settings import PRESETS, Settings
from repsim.study.study import Machine
from repsim.study.toml import read_toml

MODELS = "models.toml"
_CODE = re.compile(r"(?:^|[=,\s])([^\s,;=:]+\.py):")  # of `file.py:object` in a setting


@dataclass(frozen=True)
class Wish:
    """A study as a user asks for it.

    Attributes:
        preset: its name, or a TOML file of the same form.
        folder: where all is kept; None for universal-PRESET here.
        schemes: only these; all of the preset's if empty.
        seeds: another number than the preset's.
        data: another data set than the preset's.
        models: a TOML file of the user's own networks.
        settings: `KEY=VALUE` over the preset's.
        precision: "auto", "float32" or "bf16"; None for the preset's.
    """

    preset: str = "demo"
    folder: Path | None = None
    schemes: Sequence[str] = ()
    seeds: int | None = None
    data: str | None = None
    models: Path | None = None
    settings: Sequence[str] = ()
    precision: str | None = None

    @property
    def place(self) -> Path:
        """The study's folder, absolute."""
        return (self.folder or Path(f"universal-{Path(self.preset).stem}")).resolve()


def command_of(wish: Wish, settings: Settings, machine: Machine) -> str:
    """What makes the study, typed in its folder; nothing of it is of this machine alone.

    Args:
        wish: the study.
        settings: that it came to.
        machine: where it runs; a folder of data sets that is given relative to here stays so.

    Raises:
        UserError: a preset's file of the name that the networks are kept under.
    """
    folder = wish.place
    words = ["repsim", "reproduce", "universal", "--preset", wish.preset, "--out", "."]
    if wish.preset not in PRESETS:
        words[4] = Path(wish.preset).name
        if wish.models is not None and words[4] == MODELS:
            raise UserError(
                f"--preset expects a file of another name than {MODELS}, which the networks of "
                f"--models are kept as; got {wish.preset}"
            )
    if wish.schemes:
        words += ["--schemes", ",".join(wish.schemes)]
    if wish.seeds is not None:
        words += ["--seeds", str(wish.seeds)]
    if _is_folder(settings.data):
        words += ["--data", seen_from(folder, Path(settings.data))]
    elif wish.data is not None:
        words += ["--data", wish.data]
    if root := _data_root(settings, machine, folder):
        words += ["--data-root", root]
    if wish.models is not None:
        words += ["--models", MODELS]
    for text in wish.settings:
        words += ["--set", text]
    if wish.precision is not None:
        words += ["--precision", wish.precision]
    return shlex.join(words)


def _is_folder(data: str) -> bool:
    return data != "digits" and Path(data).is_dir()


def _data_root(settings: Settings, machine: Machine, folder: Path) -> str:
    """Where data sets lie, from the study's folder; "" where each machine has its own place."""
    if settings.data == "digits" or ":" in settings.data or _is_folder(settings.data):
        return ""
    root = machine.data_root or (None if os.environ.get(ENVIRONMENT) else Path(DEFAULT_ROOT))
    here = Path.cwd()
    if root is None or root.is_absolute() or not root.is_dir() or not folder.is_relative_to(here):
        return ""
    return seen_from(folder, root)


def keep_given(wish: Wish, settings: Settings, networks: Sequence[StudyNetwork]) -> None:
    """Put into the study's folder what its command names.

    The preset's file as it is; the networks' file with the checkpoints as they are seen from there;
    the user's own code where it lies below the working directory, so that it has the same name.

    Args:
        wish: the study, whose folder is there.
        settings: that it came to.
        networks: its networks.
    """
    folder = wish.place
    if wish.preset not in PRESETS:
        _copy(Path(wish.preset), folder / Path(wish.preset).name)
    out = folder / MODELS
    if wish.models is not None and not (out.exists() and out.samefile(wish.models)):
        _write(out, _relocated(wish.models, folder).encode())
    texts = [*_texts(settings.to_json()), *(one.arch for one in networks)]
    for name in sorted({name for text in texts for name in _CODE.findall(text)}):
        path = Path(name)
        if not path.is_absolute() and ".." not in path.parts and path.is_file():
            _copy(path, folder / path)


def _copy(source: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, source.read_bytes())


def _write(out: Path, content: bytes) -> None:
    """A file of that content, which is left alone where it is that already."""
    if not (out.is_file() and out.read_bytes() == content):
        with replacing(out) as beside:
            beside.write_bytes(content)


def _relocated(path: Path, folder: Path) -> str:
    """The text of a file of networks with its checkpoints as they are seen from a folder."""
    content = read_toml(path, "--models")
    lines = ["preset = true", ""] if content.get("preset") else []
    for row in content["network"]:
        checkpoint = path.parent / Path(row["checkpoint"]).expanduser()
        lines.append("[[network]]")
        for key, value in {**row, "checkpoint": seen_from(folder, checkpoint)}.items():
            # Texts, numbers and lists of them are written alike in JSON and in TOML.
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
        lines.append("")
    return "\n".join(lines)


def _texts(value: Any) -> Iterator[str]:
    """All texts among nested plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
