"""Being one rank of a layout without the others, to build its part of a model on the meta device."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from cupola_trainer import runtime
from cupola_trainer.config import LayoutConfig

FINGERPRINTED = False  # for forecasts


@contextmanager
def pretend(layout: LayoutConfig, rank: int) -> Iterator[None]:
    """Have the groups of a layout's rank, whose collectives do nothing, and put every new tensor on the meta device."""
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    runtime.stop()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    make = parallel_state.create_group
    parallel_state.create_group = lambda *args, backend=None, **more: make(*args, **more)  # gloo's are fake too
    try:
        parallel_state.initialize_model_parallel(**runtime.group_sizes(layout))
        with torch.device("meta"), _Nowhere():
            yield
    finally:
        parallel_state.create_group = make
        runtime.stop()


class _Nowhere(TorchFunctionMode):
    """Puts on the meta device what is meant for another one."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in (torch.Tensor.cpu, torch.Tensor.cuda):
            return args[0]
        return func(*args, **(named | {"device": "meta"} if named.get("device") is not None else named))
