"""Scaled dot-product attention with extensions: windows, soft-capped scores, scaled queries, dual chunks."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cupola_trainer import runtime
from cupola_trainer.config.model.positions import LengthScaling
from cupola_trainer.kernels.causal_attention import causal_attention
from cupola_trainer.models.attention.dual_chunks import DualChunks
from cupola_trainer.models.attention.texts import Texts
from cupola_trainer.models.decoder_config import DecoderConfig

SHORT = 512
"""Longest sequence whose scores are kept for backward: they take as much memory as the layer's activations."""

BLOCK = 512
"""Queries per block in soft-capped and windowed attention."""


@dataclass(frozen=True)
class Attend:
    """The attention function of one layer."""

    scale: float | None = None
    """Scale of the scores; None for 1 / sqrt(head_dim)."""

    softcap: float | None = None
    """Scores become softcap * tanh(score / softcap)."""

    window: int | None = None
    """Sliding window in tokens, the query included; None for full attention."""

    length_scaling: LengthScaling | None = None
    """Scaling of queries beyond the trained length."""

    dual_chunks: DualChunks | None = None
    """Dual chunk attention."""

    @classmethod
    def of(cls, config: DecoderConfig, layer_number: int) -> "Attend":
        """The attention of one layer, numbered from 1 over the whole model, as in Megatron."""
        windows = config.attention_windows
        window = windows[(layer_number - 1) % len(windows)] if windows else None
        chunks = None
        if config.dual_chunk:
            chunks = DualChunks(config.dual_chunk, config.inverse_frequencies, config.softmax_scale)
        return cls(config.softmax_scale, config.attn_logit_softcapping, window, config.length_scaling, chunks)

    @property
    def needs_positions(self) -> bool:
        """Whether absolute positions in the row matter, not only distances."""
        return self.length_scaling is not None or self.dual_chunks is not None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None = None,
        positions: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[b, heads, q, d], [b, groups, k, d] twice -> [b, heads, q, d].

        Args:
            visible: [q, k] or [b, 1, q, k], True where a query may attend; None for causal.
            positions: of queries [q] or [b, q] and keys [k] or [b, k]; None if keys are in order and the queries are
                the last ones.
        """
        if self.length_scaling:
            query = query * self._query_scale(query, key, positions)
        if self.dual_chunks and key.size(2) > self.dual_chunks.chunk.stride:
            return self.dual_chunks(query, key, value, visible, positions)
        if self._uses_windows(query, key, visible, positions):
            return self._windowed(query, key, value)
        visible = self._mask(query.size(2), key.size(2), query.device, visible, positions)
        if self.softcap is not None:
            return self._softcapped(query, key, value, visible)
        if visible is None and self._keeps_scores(query, key):
            return causal_attention(query, key, value, self.scale)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            is_causal=visible is None and query.size(2) > 1,
            scale=self.scale,
            enable_gqa=query.size(1) != key.size(1),
        )

    def each_text(self, query: Tensor, key: Tensor, value: Tensor, texts: Texts) -> Tensor:
        """Causal attention of whole rows, as `__call__`, within each of their texts."""
        rows = []
        for row, lengths in enumerate(texts.lengths):
            parts = (each[row : row + 1].split(lengths, dim=2) for each in (query, key, value))
            rows.append(torch.cat([self(*text) for text in zip(*parts, strict=True)], dim=2))
        return torch.cat(rows)

    def one(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None = None,
        positions: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attention of one query per row, the last: [b, groups, heads / groups, d], [b, groups, k, d] twice -> [b,
        groups, heads / groups, d].

        Treats the heads of a group as extra queries of one head, which avoids copying the keys.
        """
        special = self.softcap is not None or self.needs_positions
        if special or (self.window is not None and key.size(2) > self.window):
            return self(query.flatten(1, 2)[:, :, None], key, value, visible, positions).reshape(query.shape)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=self.scale)

    def _keeps_scores(self, query: Tensor, key: Tensor) -> bool:
        """Whether keeping a sequence's scores is cheap and pays off."""
        fits = 1 < query.size(2) == key.size(2) <= SHORT
        return fits and query.dtype is torch.float32 and not runtime.has_fused_kernels()

    def _uses_windows(
        self, query: Tensor, key: Tensor, visible: Tensor | None, positions: tuple[Tensor, Tensor] | None
    ) -> bool:
        """Whether blockwise windows can replace a mask over the whole sequence."""
        plain = self.softcap is None and visible is None and positions is None
        return plain and self.window is not None and query.size(2) == key.size(2) > max(self.window, BLOCK)

    def _windowed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend block by block, each over the keys in its window: memory is linear in the length."""
        assert self.window is not None
        back, length = self.window - 1, key.size(2)
        order = torch.arange(BLOCK + back, device=key.device)
        distance = back + order[:BLOCK, None] - order  # from a block's queries to the keys from one window before it
        seen = (distance >= 0) & (distance <= back)
        outputs = []
        for start in range(0, length, BLOCK):
            first, end = max(0, start - back), min(start + BLOCK, length)
            skipped = first - (start - back)  # keys before the start of the sequence
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:end],
                    key[:, :, first:end],
                    value[:, :, first:end],
                    attn_mask=seen[: end - start, skipped : skipped + end - first],
                    scale=self.scale,
                    enable_gqa=query.size(1) != key.size(1),
                )
            )
        return torch.cat(outputs, dim=2)

    def _mask(
        self,
        queries: int,
        keys: int,
        device: torch.device,
        visible: Tensor | None,
        positions: tuple[Tensor, Tensor] | None,
    ) -> Tensor | None:
        """The mask of where queries may attend; None if torch's causal attention suffices."""
        if visible is not None and self.window is None:
            return visible
        whole = positions is None and queries in (1, keys) and (self.window is None or keys <= self.window)
        if visible is None and whole and (self.softcap is None or queries == 1):
            return None
        order = torch.arange(keys, device=device)
        of_queries, of_keys = positions or (order[keys - queries :], order)
        distance = of_queries[..., :, None] - of_keys[..., None, :]  # [q, k] or [b, q, k]
        distance = distance[:, None] if distance.dim() == 3 else distance
        visible = distance >= 0 if visible is None else visible
        return visible if self.window is None else visible & (distance < self.window)

    def _query_scale(self, query: Tensor, key: Tensor, positions: tuple[Tensor, Tensor] | None) -> Tensor:
        """Factor on the queries: [q, 1], or [b, 1, q, 1] if rows differ."""
        assert self.length_scaling is not None
        trained = self.length_scaling.original_max_position_embeddings
        last = torch.arange(key.size(2) - query.size(2), key.size(2), device=query.device)
        places = (positions[0] if positions else last) + 1.0
        if self.length_scaling.type == "logn":
            growth = places.log() / math.log(trained)
        else:
            growth = 0.1 * (places / trained).log() + 1
        growth = growth.clamp(min=1)[..., None].to(query.dtype)
        return growth[:, None] if growth.dim() == 3 else growth

    def _softcapped(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """Attend block by block, recomputing each in backward: memory is linear in the length."""
        key, value = key[:, :, None], value[:, :, None]  # [b, groups, 1, k, d]
        query = query.unflatten(1, (key.size(1), -1))  # [b, groups, heads / groups, q, d]
        if visible is None:
            visible = torch.ones(1, key.size(3), dtype=torch.bool, device=key.device)
        elif visible.dim() == 4:
            visible = visible[:, :, None]
        blocks = [
            checkpoint(self._softcapped_block, q, key, value, mask, use_reentrant=False)
            if torch.is_grad_enabled() and query.size(3) > BLOCK
            else self._softcapped_block(q, key, value, mask)
            for q, mask in zip(query.split(BLOCK, dim=3), visible.split(BLOCK, dim=-2), strict=True)
        ]
        return torch.cat(blocks, dim=3).flatten(1, 2)

    def _softcapped_block(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        cap = self.softcap
        assert cap is not None
        scale = 1 / math.sqrt(query.size(-1)) if self.scale is None else self.scale
        scores = torch.tanh(query @ key.transpose(-1, -2) * (scale / cap)) * cap
        scores = scores.masked_fill(~visible, -math.inf)
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
