"""What is said of long work, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from repsim.progress import Bar, Lines, Silent, format_row, reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_lines_have_a_rate_and_the_time_left(clock: list[float]) -> None:
    out = io.StringIO()
    lines = Lines(out, every=10)
    with lines.task("attack", 1000, done=100, unit="img") as task:
        for _ in range(9):
            clock[0] += 4  # 100 images in 4 seconds
            task.advance(100)
    assert out.getvalue().splitlines() == [
        "attack: 400/1000 img, 25 img/s, 0:24 left",
        "attack: 700/1000 img, 25 img/s, 0:12 left",
        "attack: 1000/1000 img in 0:36",
    ]


def test_short_work_says_nothing(clock: list[float]) -> None:
    out = io.StringIO()
    with Lines(out).task("clean", 10) as task:
        clock[0] += 2
        task.advance(10)
    assert out.getvalue() == ""


def test_rows_and_lines() -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.row({"epoch": 3, "loss": 0.123456})
    lines.say("a line")
    assert out.getvalue() == "epoch 3  loss 0.1235\na line\n"
    assert format_row({"lr": 1e-5, "name": "x"}) == "lr 1e-05  name x"


def test_the_reporter_fits_where_it_writes() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert type(reporter(stream=io.StringIO())) is Lines
    assert type(reporter(stream=Terminal())) is Bar
    assert type(reporter(quiet=True, stream=Terminal())) is Silent
    out = Terminal()
    bar = reporter(stream=out)
    with bar.task("attack", 100, unit="img") as task:
        task.advance(50)
        bar.say("[brackets] stay")
        task.advance(50)
    assert "[brackets] stay" in out.getvalue()
