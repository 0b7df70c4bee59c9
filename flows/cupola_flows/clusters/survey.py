"""What every cluster answers now, asked in parallel."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from cupola_platform.clusters import Cluster
from cupola_platform.errors import CupolaError
from cupola_platform.launch.capacity import Capacity
from cupola_platform.launch.launcher import make_launcher
from cupola_platform.launch.local import gpus, room
from cupola_platform.security.urls import shown
from cupola_platform.settings import Settings

PATIENCE = 15.0
"""Seconds to wait for all clusters together."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cluster: its settings, and its answer. The same names are the keys of `cupola clusters --json`."""

    cluster: str | None
    """Name in `cupola.toml`; None for this machine without a name."""
    launcher: str
    nodes: int
    """Most nodes that one job may take."""
    gpus_per_node: int
    ranks_per_node: int
    gpu_memory_gib: float | None
    price_per_node_hour: float | None
    state: Literal["free", "busy", "down", "unreachable"]
    """Whether a job of one node could start now; down if no node is up."""
    reason: str | None = None
    """Why there is no answer."""
    nodes_free: int | None = None
    nodes_busy: int | None = None
    jobs_waiting: int | None = None
    nodes_down: Mapping[str, str] = field(default_factory=dict)
    """Nodes that take no jobs, each with the engine's reason."""
    asked: str
    """Time of the question, in ISO 8601 (UTC)."""


def survey(settings: Settings, patience: float = PATIENCE) -> list[Row]:
    """This machine and every cluster of the settings. One that does not answer within `patience` seconds is a row too,
    and delays nobody else's."""
    names: list[str | None] = [None, *settings.clusters]
    asked = datetime.now(UTC).isoformat(timespec="seconds")
    answers: dict[str | None, Capacity | str] = {}
    threads = [threading.Thread(target=_ask, args=(settings, name, answers), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    until = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    late = f"No answer within {patience:.0f} s."
    return [_row(name, settings.clusters.get(name or ""), answers.get(name, late), asked) for name in names]


def _ask(settings: Settings, name: str | None, answers: dict[str | None, Capacity | str]) -> None:
    try:
        answers[name] = make_launcher(settings, name).capacity()
    except CupolaError as error:
        answers[name] = str(error).removeprefix(f"Cluster {name}: ")
    except Exception as error:  # noqa: BLE001 - one cluster's failure is a row, whatever it is
        answers[name] = shown(f"{type(error).__name__}: {error}")


def _row(name: str | None, cluster: Cluster | None, answer: Capacity | str, asked: str) -> Row:
    row = Row(
        cluster=name,
        launcher=cluster.launcher if cluster else "local",
        nodes=cluster.nodes if cluster else 1,
        gpus_per_node=cluster.gpus_per_node if cluster else gpus(),
        ranks_per_node=cluster.per_node if cluster else room()[0],
        gpu_memory_gib=cluster.gpu_memory if cluster else None,
        price_per_node_hour=cluster.price if cluster else None,
        state="unreachable",
        asked=asked,
    )
    if isinstance(answer, str):
        return replace(row, reason=answer)
    return replace(
        row,
        state="free" if answer.free else "busy" if answer.nodes else "down",
        nodes_free=answer.free,
        nodes_busy=answer.nodes - answer.free,
        jobs_waiting=answer.waiting,
        nodes_down=dict(answer.down),
    )
