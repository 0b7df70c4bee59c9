"""What all modules of Transformer Engine share."""

import pickle
from typing import Any

import torch
from torch import Tensor

from ...absent import absent
from ..fp8 import FP8GlobalStateManager, Scales

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
        self.fp8 = self.fp8_calibration = False
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False, "fp8_group": None}
        self.workspaces: dict[int, Tensor] = {}
        self.rounded = 0
        """How many operands were rounded to FP8: for tests, not in the original."""

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """Take over whether FP8 is on, and make scales the first time."""
        self.fp8 = self.fp8_meta["fp8_checkpoint"] = FP8GlobalStateManager.is_fp8_enabled()
        if not self.fp8:
            return
        recipe = FP8GlobalStateManager.get_fp8_recipe()
        if self.fp8_meta.get("recipe") != recipe:
            self.fp8_meta |= {"recipe": recipe, "num_gemms": num_gemms}
            self.fp8_meta |= {
                "scaling_fwd": Scales(recipe, 3 * num_gemms),
                "scaling_bwd": Scales(recipe, 2 * num_gemms),
            }
        self.fp8_meta["fp8_group"] = FP8GlobalStateManager.get_fp8_group()

    def get_extra_state(self) -> Tensor:
        if not self.fp8_meta["fp8_checkpoint"]:
            return torch.empty(0, dtype=torch.uint8)
        state = {"recipe": self.fp8_meta["recipe"], "extra_fp8_variables": {"num_gemms": self.fp8_meta["num_gemms"]}}
        if self.fp8_meta["recipe"].delayed():
            for name in ("fwd", "bwd"):
                scales = self.fp8_meta[f"scaling_{name}"]
                state |= {f"scale_{name}": scales.scale, f"amax_history_{name}": scales.amax_history}
        return torch.frombuffer(bytearray(pickle.dumps(state)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        assert state is None or state.numel() == 0, "the stand-in for Transformer Engine loads no FP8 state"

    def set_tensor_parallel_group(self, tp_group: Any) -> None:
        self.tp_group, self.tp_group_initialized = tp_group, True

    def _join(self, tp_group: Any, tp_size: int) -> None:
        """Take the group's size; without a group, the caller must set one before the first forward pass."""
        self.tp_size = tp_size if tp_group is None else tp_group.size()
        if tp_group is not None or tp_size == 1:
            self.set_tensor_parallel_group(tp_group)

    def _prepare(self, x: Tensor, num_gemms: int = 1) -> None:
        """Check the input, and whether to multiply in FP8."""
        assert self.tp_size == 1 or self.tp_group_initialized, "TP group not initialized."
        for name, parameter in self.named_parameters():
            assert x.dtype == parameter.dtype, (
                "Data types for parameters must match when outside of autocasted region. "
                f"Found input dtype: {x.dtype} and {name!r} dtype: {parameter.dtype}"
            )
        self.init_fp8_metadata(num_gemms)
        if self.fp8:
            FP8GlobalStateManager.add_fp8_tensors_to_global_buffer(self.fp8_meta)
