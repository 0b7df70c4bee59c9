"""How fast this rank's device multiplies matrices, and how fast ranks exchange tensors."""

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
import torch.distributed as dist

from cupola_trainer import runtime

FINGERPRINTED = False  # only measures

WARM_UP = 3
MATMUL_SECONDS = 1.0
"""Time over which `matmul_flops` takes its median."""
ALL_REDUCES = 10


def matmul_flops() -> float:
    """Median FLOP/s of this rank's GPU, or of one of its cores, over a second of multiplying large matrices: bf16 on a
    GPU, fp32 on a CPU."""
    size = _matrix_size()
    seconds = _matmul_seconds(size)
    for _ in range(WARM_UP):
        next(seconds)
    started = time.perf_counter()
    taken: list[float] = []
    while len(taken) < WARM_UP or time.perf_counter() - started < MATMUL_SECONDS:
        taken.append(next(seconds))
    return 2 * size**3 / median(taken) / (1 if torch.cuda.is_available() else torch.get_num_threads())


def matmul_peak() -> float:
    """Peak FLOP/s of all ranks together, measured by multiplying large matrices simultaneously."""
    size, rounds = _matrix_size(), 10 if torch.cuda.is_available() else 3
    seconds = _matmul_seconds(size)
    dist.barrier()
    best = min(next(seconds) for _ in range(rounds))
    total = torch.tensor([2 * size**3 / best], dtype=torch.float64, device=runtime.device())
    dist.all_reduce(total)
    return float(total)


def all_reduce_bandwidth(group: dist.ProcessGroup | None = None) -> float:
    """Bus bandwidth of an all-reduce over a group (None: all ranks), in bytes/s: 2 (n - 1) / n x bytes / time, as
    nccl-tests defines it, so that groups of different sizes compare. Collective; the median of several, warmed up.
    """
    ranks = dist.get_world_size(group)
    payload = torch.zeros(_payload_bytes() // 4, device=runtime.device())
    seconds = [_timed(lambda: dist.all_reduce(payload, group=group)) for _ in range(WARM_UP + ALL_REDUCES)]
    return float(2 * (ranks - 1) / ranks * payload.nbytes / median(seconds[WARM_UP:]))


def _matrix_size() -> int:
    return 8192 if torch.cuda.is_available() else 1024


def _payload_bytes() -> int:
    """Large enough that the network's latency does not count."""
    return 2**28 if torch.cuda.is_available() else 2**24


def _matmul_seconds(size: int) -> Iterator[float]:
    """Seconds of one multiplication after another."""
    matrix = torch.randn(size, size, device=runtime.device(), dtype=runtime.dtype())
    while True:
        yield _timed(lambda: matrix @ matrix)


def _timed(work: Callable[[], object]) -> float:
    runtime.synchronize()
    started = time.perf_counter()
    work()
    runtime.synchronize()
    return time.perf_counter() - started
