"""Dot-product attention: whole rows, or several texts end to end."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..distributed import gather_sequence
from ..module.base import TransformerEngineBaseModule
from . import rope

FUSED_DTYPES = {torch.float16, torch.bfloat16}
"""Dtypes that Flash and cuDNN attention know. The only other kernel takes neither packed rows nor context
parallelism."""

MASKS = (
    "no_mask",
    "padding",
    "causal",
    "padding_causal",
    "causal_bottom_right",
    "padding_causal_bottom_right",
    "arbitrary",
)

__all__ = ["DotProductAttention", "rope"]


class DotProductAttention(TransformerEngineBaseModule):
    """Attention of queries to keys in one of two formats.

    "sbhd": [s, b, heads, d] -> [s, b, heads * d]. "thd": texts end to end, [t, heads, d] -> [t, heads * d].
    """

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int,
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        tp_group: Any = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group: Any = None,
        cp_global_ranks: list[int] | None = None,
        cp_stream: Any = None,
        cp_comm_type: str = "p2p",
        softmax_scale: float | None = None,
    ) -> None:
        super().__init__()
        if attention_dropout or window_size or attention_type != "self" or cp_comm_type != "p2p":
            raise NotImplementedError("the stand-in for Transformer Engine attends without dropout and windows")
        self._join(tp_group, tp_size)
        self.qkv_format, self.attn_mask_type, self.head_dim = qkv_format, attn_mask_type, kv_channels
        groups = num_gqa_groups or num_attention_heads
        assert num_attention_heads % groups == 0, "attention heads must be divisible by the number of GQA groups!"
        self.num_gqa_groups_per_partition = groups // self.tp_size
        self.softmax_scale = softmax_scale or 1 / math.sqrt(kv_channels)
        self.cp_group = cp_group

    def forward(
        self,
        query_layer: Tensor,
        key_layer: Tensor,
        value_layer: Tensor,
        attention_mask: Tensor | None = None,
        qkv_format: str | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None,
        cu_seqlens_q_padded: Tensor | None = None,
        cu_seqlens_kv_padded: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
    ) -> Tensor:
        """`attention_mask` is read only for the mask types that need one, which the stand-in refuses: for "causal" it is
        ignored, and whole rows attend."""
        kind, form = attn_mask_type or self.attn_mask_type, qkv_format or self.qkv_format
        assert kind in MASKS, f"Attention mask type {kind} is not supported!"
        qkv = (query_layer, key_layer, value_layer)
        self._check(*qkv, 3 if form == "thd" else 4)
        if form == "thd":
            if cu_seqlens_q_padded is not None or cu_seqlens_kv_padded is not None:
                raise NotImplementedError("the stand-in for Transformer Engine has no padding between texts")
            return self._texts(*qkv, cu_seqlens_q, cu_seqlens_kv, (max_seqlen_q, max_seqlen_kv), kind)
        if form != "sbhd" or kind not in ("causal", "no_mask"):
            raise NotImplementedError(f"the stand-in for Transformer Engine has no {kind} attention of {form}")
        return self._rows(*qkv, kind)

    def _check(self, query: Tensor, key: Tensor, value: Tensor, dimensions: int) -> None:
        assert query.dtype == key.dtype == value.dtype, "Queries, keys and values must have the same data type!"
        assert key.shape == value.shape, "Keys and values must have the same batch size, length and number of heads!"
        assert query.size(-1) == key.size(-1) == self.head_dim, f"expected head_dim = {self.head_dim}!"
        assert key.size(-2) == self.num_gqa_groups_per_partition, (
            f"Keys and values must have num_gqa_group = {self.num_gqa_groups_per_partition} heads!"
        )
        assert all(each.dim() == dimensions for each in (query, key, value)), f"must be {dimensions}D tensors"

    def _check_backend(self, query: Tensor) -> None:
        if query.dtype not in FUSED_DTYPES or self.head_dim % 8 or self.head_dim > 256:
            raise ValueError("No dot product attention backend is available for the provided inputs.")

    def _rows(self, query: Tensor, key: Tensor, value: Tensor, kind: str) -> Tensor:
        """[s, b, heads, d]; on context-parallel ranks, chunks r and 2n - 1 - r of the sequence."""
        order = torch.arange(query.size(0))
        of_queries = of_keys = order
        if self.cp_group is not None and self.cp_group.size() > 1:
            self._check_backend(query)
            ranks, half = self.cp_group.size(), query.size(0) // 2
            assert query.size(0) % 2 == 0, "the sequence must be divisible by twice the context-parallel ranks"
            places = [torch.cat([order[:half] + r * half, order[:half] + (2 * ranks - 1 - r) * half])
                      for r in range(ranks)]  # fmt: skip
            of_queries, of_keys = places[self.cp_group.rank()], torch.cat(places)
            key, value = gather_sequence(key, self.cp_group), gather_sequence(value, self.cp_group)
        seen = of_queries[:, None] >= of_keys if kind == "causal" else None
        read = self._attend(query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), seen)
        return read.permute(2, 0, 1, 3).flatten(2)

    def _texts(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        starts: Tensor | None,
        starts_kv: Tensor | None,
        longest: tuple[int | None, int | None],
        kind: str,
    ) -> Tensor:
        """[t, heads, d], each text by itself."""
        assert "padding" in kind, "Attention mask type must be padding or padding_causal for qkv_format=thd!"
        assert starts is not None, "cu_seqlens_q and cu_seqlens_kv can not be None when qkv_format = thd!"
        assert starts_kv is not None, "cu_seqlens_q and cu_seqlens_kv can not be None when qkv_format = thd!"
        assert starts.shape == starts_kv.shape, "cu_seqlens must have shape [batch_size + 1]!"
        assert starts.dim() == 1, "cu_seqlens must have shape [batch_size + 1]!"
        assert starts.dtype == starts_kv.dtype == torch.int32, "cu_seqlens must be in dtype torch.int32!"
        self._check_backend(query)
        if self.cp_group is not None and self.cp_group.size() > 1:
            raise NotImplementedError("the stand-in for Transformer Engine has no packed context parallelism")
        lengths = starts.diff().tolist()
        # the kernels would read out of bounds or leave the rest of the output unset
        assert torch.equal(starts, starts_kv)
        assert int(starts[0]) == 0
        assert min(lengths) > 0
        assert sum(lengths) == query.size(0) == key.size(0)
        assert all(most is None or most >= max(lengths) for most in longest)
        read = []
        parts = (each.transpose(0, 1)[None].split(lengths, dim=2) for each in (query, key, value))
        for q, k, v in zip(*parts, strict=True):
            length = q.size(2)
            seen = torch.ones(length, length, dtype=torch.bool).tril() if kind == "padding_causal" else None
            read.append(self._attend(q, k, v, seen)[0].transpose(0, 1))
        return torch.cat(read).flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        """[b, heads, q, d], [b, groups, k, d] twice -> [b, heads, q, d]; `seen` [q, k], True where a query attends."""
        shared = query.size(1) // key.size(1)
        wide_key, wide_value = (each.float().repeat_interleave(shared, dim=1) for each in (key, value))
        scores = query.float() @ wide_key.transpose(2, 3) * self.softmax_scale
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        return (scores.softmax(dim=-1) @ wide_value).to(query.dtype)
