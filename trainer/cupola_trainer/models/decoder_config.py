"""Megatron's TransformerConfig, and what it has no words for."""

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig


@dataclass
class DecoderConfig(TransformerConfig):
    """Of any family that a ModelConfig describes. The fields are ModelConfig's."""

    attention_windows: tuple[int | None, ...] = ()
    attn_logit_softcapping: float | None = None
    post_norm: bool = False
