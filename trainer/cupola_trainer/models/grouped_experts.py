"""The experts of a layer as two stacked weights, for torch's grouped products on GPUs without Transformer Engine."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor

from cupola_trainer.models.decoder_config import DecoderConfig


class GroupedExperts(MegatronModule):
    """Gated experts without bias. The products of all are one kernel each, whose sizes stay on the device; an expert's
    weights have the checkpoint names that Megatron's have one after another."""

    def __init__(
        self, num_local_experts: int, config: DecoderConfig, submodules: Any = None, pg_collection: Any = None
    ) -> None:
        super().__init__(config=config)
        self.num_local_experts, self.ep_group, self.dp_group = (
            num_local_experts,
            pg_collection.ep,
            pg_collection.expt_dp,
        )
        self.tp_group = pg_collection.expt_tp
        hidden, inner = config.hidden_size, config.moe_ffn_hidden_size // self.tp_group.size()
        self.widen = self._weight(2 * inner, hidden, split=0)
        self.narrow = self._weight(hidden, inner, split=1)

    def _weight(self, rows: int, columns: int, split: int) -> torch.nn.Parameter:
        """[experts, rows, columns], of which tensor parallelism splits axis `split` of an expert's."""
        shape = self.num_local_experts, rows, columns
        weight = torch.nn.Parameter(torch.empty(shape, dtype=self.config.params_dtype))
        set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=1 + split, stride=1)
        weight.allreduce = self.config.expert_model_parallel_size == 1  # type: ignore[attr-defined]
        return weight

    def forward(
        self, permuted_local_hidden_states: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor
    ) -> tuple[Tensor, None]:
        """Tokens [n, h], sorted by expert, tokens of each expert [experts], and the router's weights [n] -> [n, h]."""
        x = permuted_local_hidden_states
        ends = tokens_per_expert.to(x.device, non_blocking=True).cumsum(0).to(torch.int32)
        hidden = self._activate(_product(x, self.widen, ends), permuted_probs.unsqueeze(-1))
        return _product(hidden, self.narrow, ends), None

    def _activate(self, hidden: Tensor, probs: Tensor) -> Tensor:
        """[n, 2 f] -> [n, f], times the router's weights [n, 1]."""
        if self.config.bias_activation_fusion:
            fused: Tensor = fused_bias_swiglu.weighted_bias_swiglu_impl(hidden, None, probs, False)
            return fused
        gate, up = hidden.chunk(2, dim=-1)
        return (self.config.activation_func(gate) * up * probs).to(hidden.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The names, shapes and offsets of one expert after another."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        tensors: dict[str, Any] = {}
        for local in range(self.num_local_experts):
            number = self.ep_group.rank() * self.num_local_experts + local
            offsets = (*sharded_offsets, (len(sharded_offsets), number, self.ep_group.size() * self.num_local_experts))
            for name, weight, axis in (("linear_fc1", self.widen, 0), ("linear_fc2", self.narrow, 1)):
                key = f"{prefix}experts.{name}.weight"
                options = {"tp_group": self.tp_group, "dp_cp_group": metadata["dp_cp_group"]}
                made = make_sharded_tensors_for_checkpoint({key: weight[local]}, "", {key: axis}, offsets, **options)[
                    key
                ]
                made.replica_id = (*made.replica_id[:2], self.dp_group.rank())
                tensors[f"{key}{local}"] = apply_swiglu_sharded_factory(made, offsets) if axis == 0 else made
        return tensors


def _product(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Rows of x [n, in] times their expert's weight, transposed: weights [experts, out, in], and where the rows of each
    end [experts] -> [n, out]."""
    if not len(x):  # the kernels take no empty matrix; so the weights still get a gradient, of zeros
        return F.linear(x, weights[0])
    grouped = getattr(F, "grouped_mm", None) or torch._grouped_mm  # of torch 2.9
    output: Tensor = grouped(x, weights.transpose(1, 2), offs=ends)
    return output
