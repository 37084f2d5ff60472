"""Progress of long work: a bar with rate and remaining time on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True)
class Task:
    """One piece of work under way; `advance(n)` says that n more units are done."""

    advance: Callable[[int], None]


class Silent:
    """Says nothing; what library calls use unless told otherwise."""

    @contextmanager
    def task(self, what: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Task]:
        """A piece of work of `total` units, of which `done` were made before."""
        yield Task(lambda n: None)

    def row(self, row: dict[str, Any]) -> None:
        """A row of numbers, such as an epoch's."""

    def say(self, text: str) -> None:
        """A line for the user."""


Progress = Silent


class Lines(Silent):
    """Plain lines: at most one every `every` seconds, and a last one for work that took longer."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.every = every

    @contextmanager
    def task(self, what: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Task]:
        """Lines such as `attack: 512/1000 img, 83 img/s, 0:06 left`."""
        began = last = time.monotonic()
        count = done

        def advance(n: int) -> None:
            nonlocal count, last
            count += n
            now = time.monotonic()
            if now - last >= self.every and count < total:
                last = now
                rate = (count - done) / max(now - began, 1e-9)
                self.say(
                    f"{what}: {count}/{total} {unit}, {rate:.3g} {unit}/s, "
                    f"{_clock((total - count) / rate)} left"
                )

        yield Task(advance)
        seconds = time.monotonic() - began
        if seconds >= self.every:
            self.say(f"{what}: {count}/{total} {unit} in {_clock(seconds)}")

    def row(self, row: dict[str, Any]) -> None:
        """`key value` pairs on one line."""
        self.say(format_row(row))

    def say(self, text: str) -> None:
        """A line on the stream."""
        print(text, file=self.stream, flush=True)


class Bar(Lines):
    """A bar on a terminal; rows and lines appear above it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        super().__init__(stream)
        self.console = Console(file=self.stream, highlight=False)

    @contextmanager
    def task(self, what: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Task]:
        """A bar that goes away when the work is done."""
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(),
        )
        began, count = time.monotonic(), 0
        with progress.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total, completed=done, rate="")

            def advance(n: int) -> None:
                nonlocal count
                count += n
                rate = count / max(time.monotonic() - began, 1e-9)
                bar.update(task, advance=n, rate=f"{rate:.3g} {unit}/s")

            yield Task(advance)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)


def reporter(*, quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """The reporter that fits where stderr goes."""
    stream = stream or sys.stderr
    if quiet:
        return Silent()
    return Bar(stream) if stream.isatty() else Lines(stream)


def format_row(row: dict[str, Any]) -> str:
    """`epoch 3  loss 1.234  ...`, numbers to four places."""
    shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
    return "  ".join(shown)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
