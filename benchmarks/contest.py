"""Contenders that take turns, so that a busy machine slows all alike."""

import resource
import time
from collections.abc import Callable
from typing import NamedTuple


class Spent(NamedTuple):
    """Least seconds over all rounds."""

    processor: float
    wall: float


def interleaved(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, Spent]:
    """Each contender's least time, of the processor (this process and the children it waited for) and of the clock."""
    best = {name: Spent(float("inf"), float("inf")) for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            wall, processor = time.perf_counter(), _processor()
            work()
            spent = Spent(_processor() - processor, time.perf_counter() - wall)
            best[name] = Spent(*map(min, best[name], spent))
    return best


def _processor() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(of.ru_utime + of.ru_stime for of in used)
