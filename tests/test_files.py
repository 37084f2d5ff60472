"""Nothing half-written under a final name, and nothing overwritten by a failure."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from repsim.errors import UserError
from repsim.files import check_writable, replacing, sha256_of


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as beside:
        assert beside.parent == tmp_path  # the same file system: renaming is atomic
        assert beside.suffix == ".txt"
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert sha256_of(path) == hashlib.sha256(b"new").hexdigest()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"existing folder to write to; there is no .*nowhere"):
        check_writable(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(UserError, match="this is a folder"):
        check_writable(tmp_path)
    check_writable(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(tmp_path / "a.txt")
