"""Linear layers, whole or split over tensor-parallel ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..distributed import (
    add_up,
    add_up_gradients,
    gather_sequence,
    scatter_sequence,
    set_tensor_model_parallel_attributes,
)
from ..products import product
from .base import TransformerEngineBaseModule


class LinearBase(TransformerEngineBaseModule):
    """y = x W^T + b, with what `Linear` and `LayerNormLinear` have in common."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        init_method: Callable[[Tensor], Any] | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: torch.device | str = "cuda",
    ) -> None:
        super().__init__()
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        assert parallel_mode in (None, "column", "row"), f"parallel_mode {parallel_mode} not supported"
        self._join(tp_group, tp_size)
        self.parallel_mode = parallel_mode
        self.in_features, self.out_features = in_features, out_features
        if parallel_mode == "column":
            self.out_features = self._part(out_features)
        elif parallel_mode == "row":
            self.in_features = self._part(in_features)
        self.sequence_parallel = self.tp_size > 1 and sequence_parallel
        self.use_bias, self.return_bias, self.apply_bias = bias, return_bias, bias and not return_bias
        self.made: dict[str, Any] = {"device": device, "dtype": params_dtype or torch.get_default_dtype()}
        self._norm_parameters()
        self.weight = Parameter(torch.empty(self.out_features, self.in_features, **self.made))
        (init_method or (lambda weight: torch.nn.init.normal_(weight, std=0.023)))(self.weight)
        set_tensor_model_parallel_attributes(self.weight, True, 1 if parallel_mode == "row" else 0, 1)
        self.bias: Any = Parameter(torch.zeros(self.out_features, **self.made)) if bias else torch.empty(0)
        if bias and parallel_mode == "row":
            self.bias.sequence_parallel = self.sequence_parallel
        elif bias and parallel_mode == "column":
            set_tensor_model_parallel_attributes(self.bias, True, 0, 1)

    def _norm_parameters(self) -> None:
        """Create the parameters that come before the weight."""

    def _part(self, features: int) -> int:
        assert features % self.tp_size == 0, f"{features} is not divisible by {self.tp_size}"
        return features // self.tp_size

    def _multiply(self, x: Tensor, first: bool | None) -> Tensor | tuple[Tensor, Tensor]:
        """[s, ..., in] -> [s, ..., out], with the group's communication. `column` turns parts of the sequence into
        parts of the features under sequence parallelism, `row` the other way round."""
        assert x.size(-1) == self.in_features, "GEMM not possible"
        if self.parallel_mode == "column" and self.tp_size > 1:
            x = (gather_sequence if self.sequence_parallel else add_up_gradients)(x, self.tp_group)
        y = product(self, x, self.weight, first)
        if self.parallel_mode == "row" and self.tp_size > 1:
            y = (scatter_sequence if self.sequence_parallel else add_up)(y, self.tp_group)
        y = y + self.bias if self.apply_bias else y
        return (y, self.bias) if self.return_bias else y


class Linear(LinearBase):
    """A linear layer."""

    save_original_input = False
    """Whether to round the input again in the backward pass, instead of keeping the rounded one: the numbers are the
    same."""

    def __init__(
        self, in_features: int, out_features: int, *, rng_tracker_name: str | None = None, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, **options)

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._prepare(inp)
        delayed = self.fp8 and self.fp8_meta["recipe"].delayed()
        assert not (delayed and self.save_original_input), (
            "DelayedScaling recipe is not supported with save_original_input"
        )
        return self._multiply(inp, is_first_microbatch)
