"""The machine that a job runs on: device, process groups, threads, seeds. Only this package and `megatron` distinguish
CPU from GPU.

megatron.core is imported inside functions, since it takes seconds and few functions need it.
"""

import os
import random
import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from cupola_platform.errors import ConfigError
from cupola_trainer.config import LayoutConfig
from cupola_trainer.config.precision import bytes_per_value
from cupola_trainer.runtime import folders, network
from cupola_trainer.runtime.allocator import keep_freed_memory
from cupola_trainer.runtime.gloo import share_one_device

T = TypeVar("T")

_started: dict[str, Any] = {}
"""State of this process: the store, the number of joins, and the current layout's sizes."""

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


def device() -> torch.device:
    """This rank's device."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def dtype(precision: str = "auto") -> torch.dtype:
    """The dtype of parameters and activations for a `precision`; auto is bf16 on a GPU, fp32 on a CPU. FP8 only
    multiplies in less."""
    wide = bytes_per_value(precision, gpu=torch.cuda.is_available()) == 4
    return torch.float32 if wide else torch.bfloat16


def world_size() -> int:
    """Number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's global rank; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def start(layout: LayoutConfig, seed: int) -> None:
    """Join the process group, set up the layout's groups, and seed every generator.

    May be called again with another layout in the same processes.

    Raises:
        ConfigError: the launcher started a different number of ranks than the layout needs.
    """
    from megatron.core import parallel_state

    if layout.world_size != world_size():
        raise ConfigError(
            f"layout: tp x pp x cp x dp = {layout.tp} x {layout.pp} x {layout.cp} x {layout.dp} = "
            f"{layout.world_size} ranks, but the launcher started {world_size()}. "
            f"Launch {layout.world_size}, or change the layout."
        )
    sizes = group_sizes(layout)
    if sizes != _started.get("sizes"):
        stop()  # groups of an earlier layout own threads
        _join()
        parallel_state.initialize_model_parallel(**sizes)
        _started["sizes"] = sizes
    _seed(seed)


def group_sizes(layout: LayoutConfig) -> dict[str, int | None]:
    return {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vp,
        "context_parallel_size": layout.cp,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": expert_tensor_parallel_size(layout),
    }


def expert_tensor_parallel_size(layout: LayoutConfig) -> int:
    """Tensor-parallel size inside experts, with the default resolved."""
    return layout.etp or (1 if layout.ep > 1 else layout.tp)


def _join() -> None:
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron relies on it to order collectives
    if world_size() == int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        network.stay_on_this_machine()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl"
    else:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        keep_freed_memory()
        share_one_device(os.environ.get("GLOO_SOCKET_IFNAME", ""))
        backend = "gloo"
    _started["joined"] = _started.get("joined", 0) + 1  # keys of earlier groups stay in the store
    store = dist.PrefixStore(f"join {_started['joined']}", _rendezvous())
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, store=store, rank=rank(), world_size=world_size())


def check_folder(folder: Path) -> None:
    """Refuse a job's folder that its nodes do not share though they should. Raises ConfigError on every rank."""
    if world_size() > int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        folders.check_shared(folder, _rendezvous())


def _rendezvous() -> dist.Store:
    if "store" not in _started:
        _started["store"] = network.store(world_size())
    return cast(dist.Store, _started["store"])


def seed_step(seed: int, step: int) -> None:
    """Seed every generator for one step of a job.

    A step's random numbers then do not depend on earlier steps, so a resumed job draws the same ones as an
    uninterrupted one, and checkpoints need no generator state.
    """
    _seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


def _seed(seed: int) -> None:
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def stop() -> None:
    """Leave the process group."""
    from megatron.core import parallel_state

    _started.pop("sizes", None)
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def has_fused_kernels() -> bool:
    """Whether torch's attention and norms are single kernels on this device; if not, those of `kernels` are faster."""
    return bool(torch.cuda.is_available())


def has_grouped_products(dtype: torch.dtype) -> bool:
    """Whether torch multiplies groups of rows by a matrix each in one kernel on this device."""
    return torch.cuda.is_available() and dtype is torch.bfloat16 and torch.cuda.get_device_capability() >= (9, 0)


def rows_of_logits(vocabulary: int) -> int:
    """Tokens per block of logits: enough to fill a GPU; on a CPU few enough for its caches (32 MiB), or, if even those
    would not fit, more, so that weights are read less often."""
    if torch.cuda.is_available():
        return 4096
    return 256 if 256 * vocabulary * 4 <= 2**25 else 1024


def memory_bytes() -> int:
    """Peak memory of this rank: allocated on the GPU, or resident on the host."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def on_first_rank(work: Callable[[], T]) -> T:
    """Run `work` on global rank 0 only; every rank gets its result or raises its error."""
    outcome: list[T | Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:  # noqa: BLE001 - every rank must see any error
            outcome[0] = error
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return cast(T, outcome[0])


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. Collective: every rank must call it."""
    flags = torch.tensor([flag], dtype=torch.int, device=device())
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def host_memory(size: int) -> torch.Tensor:
    """A buffer of bytes on the host, pinned for fast copies from the device."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def synchronize() -> None:
    """Wait until this rank's device has finished all queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Copies:
    """Copies from the device to pinned host memory, beside the work that this rank queues from now on.

    A context manager: on a GPU, what is copied inside is queued on a stream of its own, which starts once all work
    queued before is done. May be entered in another thread.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream())
        self._entered = ExitStack()

    def __enter__(self) -> None:
        if self._stream:
            self._entered.enter_context(torch.cuda.stream(self._stream))

    def __exit__(self, *error: object) -> None:
        self._entered.close()

    def wait(self) -> None:
        """Wait until everything copied so far has arrived."""
        if self._stream:
            self._stream.synchronize()
