"""Run a ProbeJob: examine the nodes of a cluster, by one rank of each ("the first") and in speed by all."""

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from cupola_platform.artifacts.digests import code_version
from cupola_platform.artifacts.environment import environment
from cupola_platform.durable import write_text
from cupola_platform.errors import StoreError
from cupola_platform.launch.node import node_name
from cupola_platform.store import LocalStore
from cupola_trainer import runtime
from cupola_trainer.config import NodeReport, ProbeJob, ProbeReport
from cupola_trainer.config.probe import CODE, REPORT, TOKEN
from cupola_trainer.reporting.progress import Report
from cupola_trainer.runtime import hardware
from cupola_trainer.runtime.speed import all_reduce_bandwidth, matmul_flops

PINGS = 20
PATIENCE = 10.0
"""Seconds after which a file that another node wrote must be visible."""

Nodes = Sequence[Sequence[int]]
"""The ranks of each node."""


def run(job: ProbeJob) -> None:
    """Write `output/probe.json`, a ProbeReport, from the first node that sees the folder of the machine that started
    the job; from rank 0 if none does."""
    runtime.start(job.layout, job.seed)
    nodes = _nodes()
    with Report(job.output, kind="probe", steps=1, parameters=0) as report:
        reports, bandwidth = _examine(job, nodes)
        seeing = [ranks[0] for ranks, node in zip(nodes, reports, strict=True) if node.sees_folder]
        if runtime.rank() == (seeing or [0])[0]:
            probed = ProbeReport(nodes=tuple(sorted(reports, key=_by_name)), bandwidth=bandwidth)
            write_text(job.output / REPORT, probed.model_dump_json(indent=1))
        dist.barrier()
        report.step(1)
        report.complete(".", {"nodes": float(len(nodes))})


def _nodes() -> Nodes:
    """The ranks of each node, in the order of torchrun's agents; one node without torchrun."""
    agents = _everyones(int(os.environ.get("GROUP_RANK", "0")))
    return [[rank for rank, agent in enumerate(agents) if agent == each] for each in sorted(set(agents))]


def _examine(job: ProbeJob, nodes: Nodes) -> tuple[list[NodeReport], float | None]:
    """A report of each node, and the bandwidth over all ranks. Collective."""
    here = next(i for i, ranks in enumerate(nodes) if runtime.rank() in ranks)
    is_first = runtime.rank() == nodes[here][0]
    names = _everyones(node_name())
    missing = _unseen(job.output, nodes, is_first)
    speeds = _everyones(matmul_flops())
    within, between, everywhere = _bandwidths(nodes, here)
    clocks = _everyones(_clocks(nodes))[0]
    mine = None
    if is_first:
        mine = NodeReport(
            node=names[runtime.rank()],
            ranks=len(nodes[here]),
            code=code_version(*CODE),
            versions={**environment(), **hardware.driver_versions()},
            gpus=hardware.gpus(),
            matmul_flops=min(speeds[rank] for rank in nodes[here]),
            bandwidth_within=within,
            bandwidth_between=between,
            sees_folder=_read(job.output / TOKEN) == job.token,
            unseen=tuple(names[nodes[i][0]] for i in missing),
            store_error=_store_error(job),
            clock_offset=clocks[here][0],
            clock_bound=clocks[here][1],
            disk_free=_disk_free(job.output),
            memory_free=psutil.virtual_memory().available,
        )
    reports = [each for each in _everyones(mine) if each is not None]
    if mine is not None and not mine.sees_folder:
        with suppress(OSError):
            job.output.rmdir()  # made on this node's own disk; not empty if there is anything to keep
    return reports, everywhere


def _by_name(node: NodeReport) -> list[str | tuple[int, str]]:
    """The numbers in names by value, so that n2 precedes n10."""
    return [(int(part), part) if part.isdecimal() else part for part in re.split(r"(\d+)", node.node)]


def _everyones(mine: Any) -> list[Any]:
    """One value of each rank, by rank. Collective."""
    values: list[Any] = [None] * runtime.world_size()
    dist.all_gather_object(values, mine)
    return values


def _unseen(folder: Path, nodes: Nodes, is_first: bool) -> list[int]:
    """The nodes whose token this node does not see in a folder. Each node writes a random one; collective."""
    mine = secrets.token_hex(16)
    own = folder / f"{TOKEN}-{runtime.rank()}"
    if is_first:
        with suppress(OSError):
            write_text(own, mine)
    tokens = _everyones(mine)
    wanted = {i: (folder / f"{TOKEN}-{ranks[0]}", tokens[ranks[0]]) for i, ranks in enumerate(nodes)}
    missing = _wait_for(wanted) if is_first else []
    dist.barrier()
    if is_first:
        own.unlink(missing_ok=True)
    return missing


def _wait_for(wanted: Mapping[int, tuple[Path, str]]) -> list[int]:
    """Those whose file does not have its text within `PATIENCE`: a network file system may need a moment."""
    until = time.monotonic() + PATIENCE
    while missing := [i for i, (path, text) in wanted.items() if _read(path) != text]:
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    return missing


def _read(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text()
    return None


def _disk_free(folder: Path) -> int | None:
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def _bandwidths(nodes: Nodes, here: int) -> tuple[float | None, float | None, float | None]:
    """Bus bandwidths of all-reduces within this node, between it and its neighbours, and over all ranks; None where
    there is only one rank or node. Collective."""
    within = _together(nodes) if len(nodes[here]) > 1 else None
    rounds = [_together([[*nodes[a], *nodes[b]] for a, b in pairs]) for pairs in _rounds(len(nodes))]
    between = [each for each in rounds if each is not None]
    everywhere = all_reduce_bandwidth() if runtime.world_size() > 1 else None
    return within, max(between, default=None), everywhere


def _together(groups: Nodes) -> float | None:
    """The bandwidth of this rank's group, while the others measure theirs; None if it has none. Collective."""
    made = [dist.new_group(list(ranks)) for ranks in groups]
    mine = next((group for group, ranks in zip(made, groups, strict=True) if runtime.rank() in ranks), None)
    dist.barrier()
    return all_reduce_bandwidth(mine) if mine is not None else None


def _rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Rounds of pairs of neighbours, no node twice in a round; every node has two neighbours, or one if there are
    two nodes."""
    if nodes < 3:
        return [[(0, 1)]] if nodes == 2 else []
    ring = [(i, (i + 1) % nodes) for i in range(nodes)]
    even = nodes - nodes % 2
    return [each for each in (ring[0:even:2], ring[1:even:2], ring[even:]) if each]


def _clocks(nodes: Nodes) -> list[tuple[float, float]]:
    """How far each node's clock is ahead of rank 0's, and the error's bound, in seconds: on rank 0. The reply
    to a ping was sent at some time within its round trip, so half of the shortest one bounds the error."""
    clocks = [(0.0, 0.0)]
    for first in [ranks[0] for ranks in nodes[1:]]:
        if runtime.rank() == 0:
            clocks.append(min((_ping(first) for _ in range(PINGS)), key=lambda each: each[1]))
        elif runtime.rank() == first:
            for _ in range(PINGS):
                _pass_on(lambda cell: dist.recv(cell, 0))
                _pass_on(lambda cell: dist.send(cell, 0))
    return clocks


def _ping(rank: int) -> tuple[float, float]:
    sent = _pass_on(lambda cell: dist.send(cell, rank))
    theirs = _pass_on(lambda cell: dist.recv(cell, rank))
    back = time.time()
    return theirs - (sent + back) / 2, (back - sent) / 2


def _pass_on(act: Callable[[torch.Tensor], object]) -> float:
    """Send this moment, in Unix seconds, or receive one; returns it once the device is done."""
    cell = torch.tensor([time.time()], dtype=torch.float64, device=runtime.device())
    act(cell)
    return float(cell)


def _store_error(job: ProbeJob) -> str | None:
    if job.store_url is None:
        return None
    from cupola_platform.store.s3 import S3Store  # boto3 takes a third of a second to import

    with tempfile.TemporaryDirectory(prefix="cupola-probe-") as cache:
        try:
            store = S3Store(
                job.store_url, cache=LocalStore(Path(cache)), endpoint_url=job.s3_endpoint_url, region=job.s3_region
            )
            store.holds("0" * 64)
        except StoreError as error:
            return str(error)
    return None
