"""The experts of a layer, computed together."""

from typing import Any

import torch.nn.functional as F
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.moe.experts import SequentialMLP
from torch import Tensor

from cupola_trainer.kernels.grouped_linear import grouped_linear
from cupola_trainer.models.hooks import gathered, is_watched


class Experts(SequentialMLP):
    """Megatron's experts one after another, with their weights and checkpoint names, whose products are one operation
    each and whose activation is computed for all tokens at once."""

    def forward(
        self, permuted_local_hidden_states: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor
    ) -> tuple[Tensor, None]:
        """Tokens [n, h], sorted by expert, tokens of each expert [experts], and the router's weights [n] -> [n, h]."""
        if not self._are_plain():
            output: tuple[Tensor, None] = super().forward(
                permuted_local_hidden_states, tokens_per_expert, permuted_probs
            )
            return output
        counts = tokens_per_expert.tolist()
        widen, narrow = (
            [gathered(getattr(each, name)).weight for each in self.local_experts]
            for name in ("linear_fc1", "linear_fc2")
        )
        hidden = grouped_linear(permuted_local_hidden_states, counts, widen)
        hidden = fused_bias_swiglu.weighted_bias_swiglu_impl(hidden, None, permuted_probs.unsqueeze(-1), False)
        return grouped_linear(hidden, counts, narrow), None

    def _are_plain(self) -> bool:
        """Whether all experts are two linear layers without communication, bias, adapters or observers, around
        SwiGLU."""
        config = self.config
        gated = config.gated_linear_unit and config.activation_func is F.silu and not config.add_bias_linear
        return gated and not config.moe_apply_probs_on_input and all(_is_plain(each) for each in self.local_experts)


def _is_plain(expert: Any) -> bool:
    layers = expert.linear_fc1, expert.linear_fc2
    if any(is_watched(layer) for layer in layers):
        return False
    known = type(layers[0]) is ColumnParallelLinear and type(layers[1]) is RowParallelLinear
    return known and all(each.explicit_expert_comm or each.tp_group.size() == 1 for each in layers)
