"""Transformer Engine's attention for rows of several texts. Import it only where Transformer Engine is installed."""

from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from cupola_trainer.models.attention.texts import Texts
from cupola_trainer.models.attention.torch_attention import TorchAttention
from cupola_trainer.models.decoder_config import DecoderConfig


class PackedAttention(TEDotProductAttention):
    """Transformer Engine's attention. For the mask type `causal` it takes no mask and attends over whole rows, so it
    gets several texts in a row in its packed format (THD), with where each text begins."""

    def __init__(self, config: DecoderConfig, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, layer_number, *args, **kwargs)
        self.apart = None
        if config.context_parallel_size > 1:  # its own wants each text divided by twice the ranks
            self.apart = TorchAttention(config, layer_number, *args, **kwargs)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None = None,
        attn_mask_type: AttnMaskType = AttnMaskType.causal,
        attention_bias: Tensor | None = None,
        packed_seq_params: Texts | None = None,
    ) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d]."""
        assert attention_mask is None
        if packed_seq_params is None:
            output: Tensor = super().forward(query, key, value, None, attn_mask_type)
            return output
        if self.apart is not None:
            return self.apart(query, key, value, packed_seq_params=packed_seq_params)  # type: ignore[no-any-return]
        starts, longest = packed_seq_params.starts, packed_seq_params.longest
        rows = PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=starts, cu_seqlens_kv=starts, max_seqlen_q=longest, max_seqlen_kv=longest
        )
        q, k, v = (each.transpose(0, 1).flatten(0, 1) for each in (query, key, value))  # [b * s, heads, d]
        output = super().forward(q, k, v, None, AttnMaskType.padding_causal, packed_seq_params=rows)
        return output.view(query.size(1), query.size(0), -1).transpose(0, 1)
