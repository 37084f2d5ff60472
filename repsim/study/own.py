"""A user's own networks, from a TOML file.

    [[network]]
    name = "mine-at"             # how tables and figures call it
    checkpoint = "runs/at.pt"    # relative to the TOML file
    scheme = "sl"
    scenario = "at"
    seed = 0                     # another number for another training of the same recipe
    eps = "8/255"                # of its training attack; the checkpoint's own where it is known

Foreign weights also have `arch` and, where the network expects them, `mean` and `std`; a checkpoint
of repsim's says these itself. `eps` is of linf; "none" for a training attack of another norm. The
study is of these networks and an untrained one; with `preset = true` at the top, of the preset's as
well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repsim.attacks.spec import parse_number
from repsim.checkpoint import read_plain
from repsim.data import default_eps
from repsim.errors import UserError
from repsim.registry import near
from repsim.study.networks import StudyNetwork
from repsim.study.settings import UNTRAINED, Kind, Settings
from repsim.study.toml import check_name, read_toml, table
from repsim.train import SCENARIOS, SCHEMES


@dataclass(frozen=True)
class _Own:
    """A `[[network]]` of a user's TOML file."""

    name: str
    checkpoint: str
    scheme: str
    scenario: str
    seed: int = 0
    eps: str = ""
    arch: str = ""
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)


def own_networks(path: Path, folder: Path, settings: Settings) -> tuple[list[StudyNetwork], bool]:
    """The networks of a user's TOML file, and whether the preset's are wanted as well.

    Args:
        path: the file.
        folder: of the study; checkpoints are found from there.
        settings: of the study.

    Raises:
        UserError: a mistake in the file, or a checkpoint that is not there or cannot be read.
    """
    content = read_toml(path, "--models")
    also = content.pop("preset", False)
    rows = content.pop("network", None)
    if content or not isinstance(also, bool) or not isinstance(rows, list) or not rows:
        came = ", ".join(content) or "none"
        raise UserError(
            f"{path}: expected [[network]] tables of name, checkpoint, scheme, scenario, and "
            f"nothing else but preset = true; got {came}"
        )
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{path}, network {row.get('name', number) if isinstance(row, dict) else number}"
        found.append(_own(table(_Own, row, where), path, folder, settings, where))
    check_distinct(found, str(path))
    if not also:
        kind = Kind(UNTRAINED, seeds=1)
        found.append(replace(
            found[0], name=f"{UNTRAINED}-0", scheme=UNTRAINED, scenario=UNTRAINED, seed=0, eps=None,
            kind=kind, checkpoint="", mean=(), std=(),
        ))  # fmt: skip
    return found, also


def _own(row: _Own, path: Path, folder: Path, settings: Settings, where: str) -> StudyNetwork:
    _check_words(row, where)
    file = path.parent / Path(row.checkpoint).expanduser()
    if not file.is_file():
        raise UserError(f"{where}: checkpoint expects a file; there is no file {file}")
    content = read_plain(file)
    # Others' checkpoints have an entry "arch" too: torchvision's training script names it so.
    known = content if isinstance(content, dict) and {"schema", "arch"} <= set(content) else {}
    if known:
        _check_known(row, known, where)
    elif not row.arch:
        raise UserError(
            f"{where}: {row.checkpoint} is not of repsim train; add its arch, such as "
            'arch = "resnet18"'
        )
    return StudyNetwork(
        row.name, row.scheme, row.scenario, row.seed, _own_eps(row, known, settings, where),
        arch=str(known["arch"]) if known else row.arch, arch_args=known.get("arch_args") or {},
        checkpoint=seen_from(folder, file), mean=tuple(row.mean), std=tuple(row.std),
    )  # fmt: skip


def _check_words(row: _Own, where: str) -> None:
    """Name, scheme and scenario."""
    check_name(row.name, where)
    if re.fullmatch(rf"{UNTRAINED}-\d+", row.name):
        raise UserError(
            f"{where}: names of {UNTRAINED}-NUMBER are kept for the control that the study adds; "
            "give another"
        )
    if row.scheme == UNTRAINED or not re.fullmatch(r"[a-z][a-z0-9_-]*", row.scheme):
        raise UserError(
            f"{where}: scheme expects one of {', '.join(SCHEMES)}, or a word of your own in lower "
            f"case other than {UNTRAINED}; got {row.scheme!r}; near: "
            f"{near(row.scheme.lower(), SCHEMES)}"
        )
    if row.scenario not in SCENARIOS:
        raise UserError(
            f"{where}: scenario expects one of {', '.join(SCENARIOS)}; got {row.scenario!r}; near: "
            f"{near(row.scenario, SCENARIOS)}"
        )


def _check_known(row: _Own, known: Mapping[str, Any], where: str) -> None:
    """Refuse what contradicts a checkpoint of repsim's, or what it says itself."""
    if given := [key for key in ("arch", "mean", "std") if getattr(row, key)]:
        raise UserError(
            f"{where}: {row.checkpoint} is of repsim train and says its {given[0]} itself; leave "
            f"{', '.join(given)} out"
        )
    for key in ("scheme", "scenario"):
        theirs, ours = str(known.get(key) or "").partition(",")[0], getattr(row, key)
        # An objective of the user's own has no word that could be told here.
        if theirs and ":" not in theirs and theirs != ours:
            raise UserError(
                f"{where}: {key} says {ours!r}; {row.checkpoint} was trained as {theirs!r}"
            )


def _own_eps(row: _Own, known: Mapping[str, Any], settings: Settings, where: str) -> float | None:
    """The size of its training attack, given or the checkpoint's."""
    if row.scenario == "st" or row.eps == "none":
        return None
    if row.eps:
        return parse_number(row.eps, what=f"{where}: eps")
    params = (known.get("attack") or {}).get("params", {})
    if params.get("norm", "linf") != "linf":
        return None
    if params.get("eps") is None:
        raise UserError(
            f"{where}: {row.scenario} expects eps, the size of its training attack, such as "
            f'eps = "{round(default_eps(settings.data_name) * 255)}/255"; "none" for one of '
            "another norm than linf"
        )
    return float(params["eps"])


def seen_from(folder: Path, file: Path) -> str:
    """A file's path as seen from a folder."""
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def check_distinct(networks: Sequence[StudyNetwork], where: str) -> None:
    """Refuse two networks of one name, and a user's own that is like another but for its name.

    Raises:
        UserError: names the two, and what to do.
    """
    names = [one.name for one in networks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: networks expect different names; {twice[0]} is there twice")
    first: dict[tuple[Any, ...], StudyNetwork] = {}
    for one in networks:
        eps = None if one.eps is None else round(one.eps, 6)
        other = first.setdefault(
            (one.scheme, one.scenario, eps, one.arch, str(one.arch_args), one.seed), one
        )
        if other is not one and (one.checkpoint or other.checkpoint):
            raise UserError(
                f"{where}: {other.name} and {one.name} are both {one.scheme}/{one.scenario} of "
                f"seed {one.seed}, of one architecture and size of attack; give one of them "
                "another seed = NUMBER if they are two trainings, or another scheme if they are "
                "two methods"
            )


def combined(ours: list[StudyNetwork], preset: list[StudyNetwork]) -> list[StudyNetwork]:
    """A user's own networks after a preset's.

    Raises:
        UserError: as `check_distinct`.
    """
    found = [*preset, *ours]
    check_distinct(found, "--models with preset = true")
    return found
