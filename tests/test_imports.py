"""Imports point one way: what knows only torch must not reach for files or the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "repsim"
# From the bottom up: a module may import those of its own row and of the rows before it.
ROWS = [
    {"errors", "registry", "keyed"},
    {
        "data",
        "augment",
        "models",
        "similarity",
        "losses",
        "contrastive_losses",
        "runtime",
        "progress",
        "files",
        "optim",
        "distributed",
    },
    {"hooks", "attacks", "objectives", "reduce", "overfitting"},
    {"checkpoint"},
    {"attack_files", "train", "evaluate", "store"},
    {"extract", "masking"},
    {"compare", "plot", "probe", "result"},
    {"cross", "pair", "live", "interchange", "inversion"},
    {"findings"},
    {"report"},
    {"study"},
    {"cli", "__main__"},
]
LEVEL = {name: i for i, row in enumerate(ROWS) for name in row}


def imported(path: Path) -> set[str]:
    """First-level names of repsim that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
            if parts[0] == "repsim":
                names |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "repsim" and len(parts) > 1:
                    names.add(parts[1])
    return names - {"__version__"}


def test_every_module_has_its_place() -> None:
    found = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir()}
    found -= {"__init__", "__pycache__", "py.typed"}
    assert found == set(LEVEL)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_point_one_way(path: Path) -> None:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if name == "__init__":
        return
    for other in imported(path):
        assert LEVEL[other] <= LEVEL[name], f"{name} imports {other}"


@pytest.mark.parametrize("heavy", ["torch", "matplotlib", "xarray", "pandas"])
def test_help_loads_nothing_heavy(heavy: str) -> None:
    code = (
        "import sys\nfrom repsim.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit({heavy!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
