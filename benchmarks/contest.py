"""Contenders that take turns, so that load on the machine affects all equally."""

import resource
import time
from collections.abc import Callable
from typing import NamedTuple


class Spent(NamedTuple):
    """The lowest times over all rounds, in seconds."""

    processor: float
    wall: float


def interleaved(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, Spent]:
    """Each contender's lowest CPU time (of this process and its finished children) and wall time."""
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
