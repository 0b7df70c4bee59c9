"""The places where jobs run, and the ranks that each has room for at once."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from cupola_platform.launch.launcher import make_launcher, room_here
from cupola_platform.launch.local import gpus, host_memory
from cupola_platform.settings import Settings


@dataclass(frozen=True)
class Place:
    """This machine, or a cluster of `cupola.toml`."""

    name: str
    """For people."""
    limit: str
    """Name of its global concurrency limit in Prefect."""
    slots: int
    """Ranks that fit at once."""
    unit: str
    """What a rank takes: `GPUs`, or `ranks` where there are none."""
    memory: float | None = None
    """Bytes of a GPU; without GPUs, of the machine that all ranks share. None if unknown."""

    @property
    def has_gpus(self) -> bool:
        return self.unit == "GPUs"

    def memory_of_rank(self, ranks: int) -> float | None:
        """Bytes that each rank of a job may use; None if unknown."""
        return self.memory if self.has_gpus or self.memory is None else self.memory / ranks


def place_of(settings: Settings, cluster: str | None) -> Place:
    """Where `run_on` sends jobs.

    Raises:
        ConfigError: no cluster has that name.
    """
    if cluster is None:
        unit, memory = ("GPUs", None) if gpus() else ("ranks", host_memory())
        return Place("this machine", f"cupola-host-{socket.gethostname()}", room_here(settings), unit, memory)
    if cluster not in settings.clusters:
        make_launcher(settings, cluster)  # says so
    of = settings.clusters[cluster]
    return Place(
        f"cluster {cluster}",
        f"cupola-{cluster}",
        of.limit or of.nodes * of.per_node,
        "GPUs" if of.gpus_per_node else "ranks",
        of.gpu_memory * 2**30 if of.gpu_memory else None,
    )


class Limits(Protocol):
    """Counts the ranks that all runs take together."""

    @contextmanager
    def taken(self, limit: str, slots: int, *, wait: bool, waits: Callable[[str], None]) -> Iterator[None]:
        """Hold slots of a limit while the block runs. With `wait`, waits until they are free and calls `waits` with
        what is taken; without, takes them once they are free."""
        yield


@dataclass(frozen=True)
class Slots:
    """Takes a place's ranks for the jobs of one stage."""

    place: Place
    limits: Limits | None
    """None without a Prefect server: then only the cluster's own queue counts."""
    say: Callable[[str], None]

    @contextmanager
    def taken(self, ranks: int, *, wait: bool = True) -> Iterator[None]:
        """Hold `ranks` while the block runs. A job that runs already does not wait for them."""
        if self.limits is None:
            yield
            return

        def waits(taken: str) -> None:
            self.say(f"waiting for {ranks} {self.place.unit} of {self.place.name}: {taken} are taken")

        with self.limits.taken(self.place.limit, ranks, wait=wait, waits=waits):
            yield
