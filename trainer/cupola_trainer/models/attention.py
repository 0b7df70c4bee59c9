"""Attention with torch's scaled_dot_product_attention, and an RMSNorm for sequence parallelism."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.kernels.rms_norm import rms_norm
from cupola_trainer.models.attend import Attend
from cupola_trainer.models.decoder_config import DecoderConfig


class TorchRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm. Under sequence parallelism each rank sees part of the tokens, so gradients are summed over
    TP."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel
        self.zero_centered = config.layernorm_zero_centered_gamma

    def forward(self, x: Tensor) -> Tensor:
        if not self.zero_centered:
            plain = x.dtype is not torch.float32 or runtime.has_fused_kernels()
            return super().forward(x) if plain else rms_norm(x, self.weight, self.eps or 0.0)
        # in fp32, as transformers' Gemma2RMSNorm: 1 + weight would lose the weight's low bits in bf16
        return F.rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).type_as(x)


class TorchAttention(MegatronModule):
    """Causal grouped-query attention, without a materialized mask where possible; context parallelism gathers K and V.

    A mask [b, 1, q, k] (True: hidden), as for decoding padded prompts, replaces causality. With more keys than queries
    and no mask, the queries are the last positions.
    """

    def __init__(
        self,
        config: DecoderConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        self.attend = Attend.of(config, layer_number)
        self.cp_group = pg_collection.cp if pg_collection else parallel_state.get_context_parallel_group()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """query [q, b, heads, d], key and value [k, b, groups, d] -> [q, b, heads * d]."""
        visible = None if attention_mask is None else ~attention_mask
        positions = None
        if self.cp_group.size() > 1:
            key = gather_from_sequence_parallel_region(key, group=self.cp_group)
            value = gather_from_sequence_parallel_region(value, group=self.cp_group)
            positions = self._positions(query.size(0), query.device)
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, heads, s, d]
        output = self.attend(q, k, v, visible, positions)
        return output.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)

    def _positions(self, local_length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions of this rank's queries and of the gathered keys, in the order of `zigzag`."""
        size = self.cp_group.size()
        ranks = [zigzag(local_length, rank, size).to(device) for rank in range(size)]
        return ranks[self.cp_group.rank()], torch.cat(ranks)


def zigzag(local_length: int, rank: int, size: int) -> Tensor:
    """Global positions of a context-parallel rank's tokens: chunks `rank` and `2 * size - 1 - rank`, which balances
    causal attention."""
    chunk = local_length // 2
    positions = torch.arange(chunk)
    return torch.cat([positions + rank * chunk, positions + (2 * size - 1 - rank) * chunk])
