"""Attention with torch's scaled_dot_product_attention, and an RMSNorm for sequence parallelism."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.kernels.rms_norm import rms_norm
from cupola_trainer.models.attend import Attend
from cupola_trainer.models.contexts import across_contexts
from cupola_trainer.models.decoder_config import DecoderConfig
from cupola_trainer.models.texts import Texts


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
    """Causal grouped-query attention. Several texts in a row attend each to itself; context-parallel ranks exchange
    tokens for heads. No tensor is quadratic in the length."""

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
        attention_mask: None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Texts | None = None,
    ) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d]."""
        assert attention_mask is None
        core = partial(self.attend.each_text, texts=packed_seq_params) if packed_seq_params else self.attend
        if self.cp_group.size() > 1:
            output = across_contexts(core, query, key, value, self.cp_group)
        else:
            output = core(*(each.permute(1, 2, 0, 3) for each in (query, key, value))).permute(2, 0, 1, 3)
        return output.reshape(query.size(0), query.size(1), -1)
