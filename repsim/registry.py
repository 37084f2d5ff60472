"""Names and plug-ins: `name`, `package.module:object` or `path/to/file.py:object` -> object."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from repsim.errors import UserError


def near(name: str, names: Iterable[str], *, limit: int = 5) -> str:
    """The names closest to a misspelt one, as text for an error message."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5) or names[:limit]
    return ", ".join(close)


def resolve(spec: str, table: Mapping[str, Any], *, kind: str, also: Iterable[str] = ()) -> Any:
    """The entry of `table` called `spec`, or the user's own object at `module:object`.

    Args:
        spec: as typed.
        table: the known ones.
        kind: of thing, for messages.
        also: names that the caller knows besides.

    Raises:
        UserError: no entry of that name, no such module or file, or no such object in it.
    """
    if spec in table:
        return table[spec]
    if ":" in spec:
        return load_object(spec, kind=kind)
    names = [*table, *also]
    raise UserError(
        f"--{kind} expects one of {', '.join(sorted(names))} or module:object or file.py:object; "
        f"got {spec!r}; near: {near(spec, names)}"
    )


def source_sha256(spec: str) -> str | None:
    """SHA-256 of the file that the user's own object at `module:object` comes from.

    None for names of ours, and where there is no such file.
    """
    where = spec.rpartition(":")[0]
    if not where:
        return None
    path = where if where.endswith(".py") else getattr(sys.modules.get(where), "__file__", None)
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_object(spec: str, *, kind: str) -> Any:
    """Import `package.module:object` or `path/to/file.py:object`."""
    where, _, attribute = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise UserError(f"--{kind} {spec}: there is no file {where}")
            name = f"repsim_plugin_{path.stem}"
            module_spec = importlib.util.spec_from_file_location(name, path)
            assert module_spec is not None
            assert module_spec.loader is not None
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[name] = module  # dataclasses and pickling look the module up by name
            module_spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except UserError:
        raise
    except Exception as error:
        hint = "" if where.endswith(".py") else "; a file is given as path/to/file.py:object"
        raise UserError(
            f"--{kind} {spec}: importing {where} failed with {type(error).__name__}: {error}{hint}"
        ) from error
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [n for n in dir(module) if not n.startswith("_")]
            raise UserError(
                f"--{kind} {spec}: {where} has no {attribute!r}; near: {near(attribute, public)}"
            )
        found = getattr(found, part)
    return found
