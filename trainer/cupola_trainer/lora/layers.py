"""LoRA in Megatron's tensor-parallel linear layers: y + scale * B A x.

Column-parallel: A [r, in] is replicated and B [out / tp, r] is sharded. Row-parallel: A [r, in / tp] is sharded and
B [out, r] is replicated. Communicated tensors are only r wide. With sequence parallelism, replicated matrices see only
part of the tokens; they are marked so that Megatron sums their gradients over the group, as for norms.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from cupola_trainer.config import LoraConfig

A, B = "lora_a", "lora_b"


def adapt(layer: Any, lora: LoraConfig, *, gated: bool) -> None:
    """Add adapters to a linear layer, initialized to zero; the caller fills A.

    Args:
        gated: the layer's output is [gate; up], which checkpoints store separately.
    """
    by_column = isinstance(layer, ColumnParallelLinear)
    rows, columns = layer.weight.shape
    for name, shape, shared in ((A, (lora.rank, columns), by_column), (B, (rows, lora.rank), not by_column)):
        parameter = torch.nn.Parameter(torch.zeros(shape, dtype=layer.weight.dtype, device=layer.weight.device))
        parameter.allreduce = layer.weight.allreduce
        if layer.is_expert or not shared:  # experts are never split, each rank has its own
            set_tensor_model_parallel_attributes(parameter, True, 0 if by_column else 1, 1)
        else:
            parameter.sequence_parallel = layer.sequence_parallel
        layer.register_parameter(name, parameter)
    layer.lora_scale, layer.lora_gated = lora.scale, gated
    layer.__class__ = LoraColumn if by_column else LoraRow


class LoraColumn(ColumnParallelLinear):
    """A column-parallel layer with adapters."""

    lora_a: Tensor
    lora_b: Tensor
    lora_scale: float
    lora_gated: bool

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_, *args, **kwargs)
        narrow = F.linear(input_, self.lora_a)
        if not self.is_expert:
            if self.sequence_parallel:
                narrow = gather_from_sequence_parallel_region(
                    narrow, tensor_parallel_output_grad=True, group=self.tp_group
                )
            else:
                narrow = copy_to_tensor_model_parallel_region(narrow, group=self.tp_group)
        return output + self.lora_scale * F.linear(narrow, self.lora_b), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        axes = {"weight": 0, "bias": 0, B: 0}
        made = _sharded(self, prefix, sharded_offsets, metadata, axes)
        if self.lora_gated:
            made[prefix + B] = apply_swiglu_sharded_factory(made[prefix + B], sharded_offsets)
        return made


class LoraRow(RowParallelLinear):
    """A row-parallel layer with adapters."""

    lora_a: Tensor
    lora_b: Tensor
    lora_scale: float

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        output, bias = super().forward(input_)
        narrow = F.linear(input_, self.lora_a)
        if not self.is_expert:
            if self.sequence_parallel:
                narrow = reduce_scatter_to_sequence_parallel_region(narrow, group=self.tp_group)
            else:
                narrow = reduce_from_tensor_model_parallel_region(narrow, group=self.tp_group)
        return output + self.lora_scale * F.linear(narrow, self.lora_b), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return _sharded(self, prefix, sharded_offsets, metadata, {"weight": 1, A: 1})


def _sharded(
    layer: Any, prefix: str, offsets: Any, metadata: dict[str, Any] | None, axes: dict[str, int]
) -> dict[str, Any]:
    state = layer.state_dict(prefix="", keep_vars=True)
    group = (metadata or {})["dp_cp_group"]
    made: dict[str, Any] = make_sharded_tensors_for_checkpoint(
        state, prefix, axes, offsets, tp_group=layer.tp_group, dp_cp_group=group
    )
    return made
