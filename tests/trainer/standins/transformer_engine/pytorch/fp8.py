"""Where FP8 is on, and the scales of tensors that are scaled by what earlier passes saw."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..common.recipe import DelayedScaling, Recipe


class Scales:
    """One direction's scales of a module: `scale` [n], `amax_history` [passes, n]; row 0 collects this pass."""

    def __init__(self, recipe: Any, count: int) -> None:
        self.scale = torch.ones(count)
        self.amax_history = torch.zeros(recipe.amax_history_len if recipe.delayed() else 1, count)


class FP8GlobalStateManager:
    """The state of FP8 in this process."""

    enabled = False
    recipe: Recipe | None = None
    group: Any = None
    depth = 0
    first_module = False
    registered: list[tuple[bool, Scales, Any, Any]] = []  # noqa: RUF012 - the original's state is the class's, too
    """For each direction of each module: whether it is forward, its scales, recipe and group."""

    @classmethod
    def reset(cls) -> None:
        cls.enabled, cls.recipe, cls.depth, cls.registered = False, None, 0, []

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls.enabled

    @classmethod
    def is_fp8_available(cls) -> tuple[bool, str]:
        return True, ""

    is_mxfp8_available = is_fp8_block_scaling_available = is_fp8_available

    @classmethod
    def get_fp8_recipe(cls) -> Any:
        """The region's recipe; outside of one the default of GPUs before Blackwell."""
        return cls.recipe or DelayedScaling()

    @classmethod
    def get_fp8_group(cls) -> Any:
        return cls.group

    @classmethod
    def is_first_fp8_module(cls) -> bool:
        """True once in each region."""
        first, cls.first_module = cls.first_module, False
        return first

    @classmethod
    def add_fp8_tensors_to_global_buffer(cls, fp8_meta: dict[str, Any]) -> None:
        if fp8_meta["recipe"].delayed() and not fp8_meta.get("registered"):
            fp8_meta["registered"] = True
            for forward, name in ((True, "scaling_fwd"), (False, "scaling_bwd")):
                cls.registered.append((forward, fp8_meta[name], fp8_meta["recipe"], fp8_meta["fp8_group"]))

    @classmethod
    def reduce_and_update_fp8_tensors(cls, forward: bool = True) -> None:
        """Share the largest magnitudes of this pass over the group, and scale the next one by the largest so far."""
        for is_forward, scales, recipe, group in cls.registered:
            if is_forward != forward:
                continue
            if group is not None and group.size() > 1:
                dist.all_reduce(scales.amax_history[0], op=dist.ReduceOp.MAX, group=group)
            largest = recipe.fp8_format.value[0 if forward else 1]
            amax = scales.amax_history.amax(dim=0)
            scales.scale.copy_(torch.where(amax > 0, largest / amax, scales.scale))
            scales.amax_history.copy_(scales.amax_history.roll(-1, 0))
            scales.amax_history[0] = 0


@contextmanager
def fp8_autocast(
    enabled: bool = True, calibrating: bool = False, fp8_recipe: Any = None, fp8_group: Any = None
) -> Iterator[None]:
    """Multiply in FP8 within the block."""
    manager = FP8GlobalStateManager
    before = manager.enabled, manager.recipe, manager.group
    manager.enabled, manager.recipe, manager.group = enabled, fp8_recipe, fp8_group
    if manager.depth == 0:
        manager.first_module = True
    manager.depth += 1
    try:
        yield
    finally:
        manager.enabled, manager.recipe, manager.group = before
        manager.depth -= 1
        if enabled and manager.depth == 0 and torch.is_grad_enabled():
            manager.reduce_and_update_fp8_tensors(forward=True)


def assert_dim_for_fp8_exec(*tensors: Tensor) -> None:
    """What the kernels need of every operand."""
    for tensor in tensors:
        assert tensor.numel() // tensor.size(-1) % 8 == 0 and tensor.size(-1) % 16 == 0, (  # noqa: PT018
            "FP8 execution requires the product of all dimensions except the last to be divisible by 8 and the last "
            f"dimension to be divisible by 16, but got tensor with dims={list(tensor.size())}"
        )
