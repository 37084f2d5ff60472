"""The notebooks run from top to bottom, on small inputs, and are the same as their .py."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_paired(name: str) -> None:
    """`jupytext --sync notebooks/*.py` mends it."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    text = jupytext.read(FOLDER / f"{name}.py")
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in text.cells
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REPSIM_SMALL", "1")
    monkeypatch.setenv("REPSIM_FIGURES", str(tmp_path))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(FOLDER)}}).execute()
    figures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert figures
    assert list(tmp_path.glob("*.png"))


def test_there_are_notebooks() -> None:
    assert NAMES
