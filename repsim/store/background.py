"""Work done in a thread of its own, a few pieces behind the caller."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """Runs jobs one after the other while the caller computes the next.

    An exception of a job stops all later ones and is raised by the caller's next `submit` or by
    `finish`. Leaving a `with` block by an exception drops the jobs that wait.

    Args:
        waiting: jobs that may wait; `submit` then blocks, which bounds the memory.
    """

    def __init__(self, waiting: int = 2) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name="repsim-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Hand over a job; raises what an earlier one raised."""
        if self._error is not None:
            raise self._error
        self._jobs.put(job)

    def finish(self) -> None:
        """Wait for all jobs; raises what one of them raised."""
        self._end()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            self._dropped = True
        self._end()

    def _end(self) -> None:
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _work(self) -> None:
        # After an error jobs are still taken, so that a caller blocked in `submit` goes on.
        while (job := self._jobs.get()) is not None:
            if self._error is None and not self._dropped:
                try:
                    job()
                except BaseException as error:
                    self._error = error
