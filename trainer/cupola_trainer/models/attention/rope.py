"""Rotary position embedding, and its scaling beyond the trained length."""

import math
from dataclasses import replace
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.positions import DynamicRope, LinearRope, Llama3Rope, YarnRope


def inverse_frequencies(model: ModelConfig, length: Tensor | int = 0) -> Tensor:
    """Radians per position of each pair of dimensions, in fp32: [..., head_dim / 2].

    Args:
        length: sequence lengths [...] in tokens, used by dynamic scaling.
    """
    dim, scaling = model.head_size, model.rope_scaling
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    if isinstance(scaling, DynamicRope):
        base = _dynamic_base(model.rope_theta, dim, scaling, torch.as_tensor(length))
        return 1 / base[..., None] ** exponents.to(base.device)
    plain = 1 / model.rope_theta**exponents
    if isinstance(scaling, LinearRope):
        return plain / scaling.factor
    if isinstance(scaling, YarnRope):
        return _yarn(plain, model.rope_theta, dim, scaling)
    if isinstance(scaling, Llama3Rope):
        return _llama3(plain, scaling)
    return plain


def attention_factor(model: ModelConfig) -> float:
    """YaRN's factor on queries and keys (section 3.4); 1 for other scalings. Scores are scaled by its square."""
    scaling = model.rope_scaling
    if not isinstance(scaling, YarnRope):
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1


def _dynamic_base(theta: float, dim: int, scaling: DynamicRope, length: Tensor) -> Tensor:
    original = scaling.original_max_position_embeddings
    stretch = scaling.factor * length.clamp(min=original) / original - (scaling.factor - 1)
    return theta * stretch ** (dim / (dim - 2))


def _yarn(plain: Tensor, theta: float, dim: int, scaling: YarnRope) -> Tensor:
    """Peng et al. 2023, equation 23, with the ramp over dimensions from the authors' code (bounds rounded outwards)."""

    def dimension(turns: float) -> float:
        return dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def _llama3(plain: Tensor, scaling: Llama3Rope) -> Tensor:
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)  # over the original length
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * (1 - kept) + plain * kept


class Rotary(RotaryEmbedding):
    """Megatron's rotary embedding with any scaling. With dual chunks, positions restart in each chunk.

    If layers with a window have a base of their own, their angles follow the others' along the last dimension, and each
    layer takes its own (`LayerAttention`).
    """

    def __init__(self, model: ModelConfig, cp_group: Any) -> None:
        super().__init__(
            model.head_size, 1.0, rotary_base=model.rope_theta, use_cpu_initialization=True, cp_group=cp_group
        )
        self.model, self.local = model, None
        if model.local_rope_theta:
            local = replace(model, rope_theta=model.local_rope_theta, local_rope_theta=None, rope_scaling=None)
            self.local = Rotary(local, cp_group)

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        angles: Tensor = super().get_emb(max_seq_len, offset)
        return angles if self.local is None else torch.cat([angles, self.local.get_emb(max_seq_len, offset)], dim=-1)

    def get_freqs_non_repeated(self, max_seq_len: int, offset: int = 0) -> Tensor:
        places = torch.arange(max_seq_len, device=self.inv_freq.device) + offset
        positions = self._within_chunk(places).float()
        return torch.outer(positions, inverse_frequencies(self.model, max_seq_len).to(positions.device))

    def at(self, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Angles [b, s, head_dim] of integer positions [b, s], twice as many if `local_rope_theta` is given.

        Args:
            lengths: [b, s], the length of each token's text; None if a row is one text, up to its largest position.
        """
        if lengths is None:
            lengths = positions.amax(dim=1, keepdim=True) + 1
        frequencies = inverse_frequencies(self.model, lengths).to(positions.device)  # [b, s or 1, d / 2] or [d / 2]
        angles = self._within_chunk(positions)[..., None] * frequencies
        both = [angles, angles] if self.local is None else [angles, angles, self.local.at(positions, lengths)]
        return torch.cat(both, dim=-1)

    def _within_chunk(self, positions: Tensor) -> Tensor:
        return positions % self.model.dual_chunk.stride if self.model.dual_chunk else positions
