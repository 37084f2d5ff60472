"""When the stages of a study will end, as `repsim.study.run` takes them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from repsim.study.run import any_ready
from repsim.study.stage import Stage


def duration(
    names: Sequence[str],
    stages: Mapping[str, Stage],
    jobs: int,
    seconds: Callable[[str, bool], float],
) -> float:
    """Seconds from the first stage's start to the last one's end.

    Args:
        names: of the stages to do, in order.
        stages: all, by name; others than those to do are done.
        jobs: stages at a time.
        seconds: of a stage, given whether it runs alone and so has all cores.
    """
    if jobs == 1 or len(names) < 2:
        return sum(seconds(name, True) for name in names)
    waiting, running = list(names), list[tuple[float, str]]()
    finished, now = set(stages) - set(names), 0.0
    while waiting or running:
        for name in list(waiting):
            if len(running) >= jobs:
                break
            if not set(stages[name].needs) <= finished:
                continue
            waiting.remove(name)
            alone = not running and not any_ready(waiting, stages, finished)
            heapq.heappush(running, (now + seconds(name, alone), name))
        now, ended = heapq.heappop(running)
        finished.add(ended)
    return now
