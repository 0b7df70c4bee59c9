"""What all modules of Transformer Engine share."""

from typing import Any

import torch
from torch import Tensor

from ...absent import absent

get_dummy_wgrad = absent("pytorch.module.base.get_dummy_wgrad")


def get_workspace() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


class TransformerEngineBaseModule(torch.nn.Module):
    """A module with an entry `_extra_state` in its state, empty without FP8."""

    def __init__(self) -> None:
        super().__init__()
        self.tp_group: Any = None
        self.tp_group_initialized = False
        self.tp_size = 1
        self.sequence_parallel = False

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        assert state is None or state.numel() == 0, "the stand-in for Transformer Engine has no FP8"

    def set_tensor_parallel_group(self, tp_group: Any) -> None:
        self.tp_group, self.tp_group_initialized = tp_group, True

    def _join(self, tp_group: Any, tp_size: int) -> None:
        """Take the group's size; without a group, the caller must set one before the first forward pass."""
        self.tp_size = tp_size if tp_group is None else tp_group.size()
        if tp_group is not None or tp_size == 1:
            self.set_tensor_parallel_group(tp_group)

    def _check_input(self, x: Tensor) -> None:
        assert self.tp_size == 1 or self.tp_group_initialized, "TP group not initialized."
        for name, parameter in self.named_parameters():
            assert x.dtype == parameter.dtype, (
                "Data types for parameters must match when outside of autocasted region. "
                f"Found input dtype: {x.dtype} and {name!r} dtype: {parameter.dtype}"
            )
