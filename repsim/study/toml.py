"""TOML files as dataclasses; a mistake in one is said in one line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from repsim.errors import UserError
from repsim.registry import near

Table = TypeVar("Table")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        UserError: no such file, or one that is not TOML.
    """
    if not path.is_file():
        raise UserError(f"{what} expects a TOML file; there is no file {path}")
    try:
        return parse(path.read_text("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a text file in TOML; {error.reason}") from error


def parse(text: str, where: str) -> dict[str, Any]:
    """The content of a text in TOML.

    Raises:
        UserError: it is none; says the line and column.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: expected TOML; {error}") from error


def table(cls: type[Table], content: Any, where: str) -> Table:
    """A dataclass from a TOML table: no unknown keys, values of the types of its fields.

    Raises:
        UserError: says the key, what was expected and what came.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a table of KEY = VALUE; got {content!r}")
    known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    read: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise UserError(
                f"{where}: there is no setting {key!r}; it takes {', '.join(known)}; near: "
                f"{near(key, known)}"
            )
        read[key] = _typed(value, known[key], f"{where}: {key}")
    try:
        return cls(**read)
    except TypeError as error:  # a field without a default
        missing = [name for name in known if f"'{name}'" in str(error)]
        raise UserError(f"{where}: expected also {', '.join(missing)}") from error


def check_name(name: str, where: str) -> None:
    """Refuse a network's name that is none of a file, or that no command could be told.

    Raises:
        UserError: says what a name is made of.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"{where}: name expects letters, digits and _-.+; got {name!r}")


_NAMES = {"str": "a text", "int": "a whole number", "bool": "true or false", "float": "a number"}


def _typed(value: Any, kind: str, where: str) -> Any:
    if kind == "tuple[str, ...]":
        listed = [value] if isinstance(value, str) else value
        if isinstance(listed, list | tuple) and all(isinstance(part, str) for part in listed):
            return tuple(listed)
        raise UserError(f"{where} expects a list of texts; got {value!r}")
    if kind == "list[float]":
        if isinstance(value, list | tuple) and all(map(_is_number, value)):
            return [float(part) for part in value]
        raise UserError(
            f"{where} expects a list of numbers, such as [0.5, 0.5, 0.5]; got {value!r}"
        )
    if kind == "float" and _is_number(value):
        return float(value)
    plain = {"str": str, "int": int, "bool": bool, "float": float}.get(kind)
    if plain is not None and (
        not isinstance(value, plain) or (plain is int and isinstance(value, bool))
    ):
        raise UserError(f"{where} expects {_NAMES[kind]}; got {value!r}")
    if plain is int and value < 0:
        raise UserError(f"{where} expects a number of at least 0; got {value}")
    if kind.startswith("Mapping") and not isinstance(value, Mapping):
        raise UserError(f"{where} expects a table of KEY = VALUE; got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
