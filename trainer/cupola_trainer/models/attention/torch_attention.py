"""Attention with torch's scaled_dot_product_attention, as a module of a layer."""

from functools import partial
from typing import Any

from megatron.core import parallel_state
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from cupola_trainer.models.attention.attend import Attend
from cupola_trainer.models.attention.contexts import across_contexts
from cupola_trainer.models.attention.texts import Texts
from cupola_trainer.models.decoder_config import DecoderConfig


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
