"""Megatron's TransformerConfig, and what it has no words for."""

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from cupola_trainer.config.model.positions import DualChunk, LengthScaling


@dataclass
class DecoderConfig(TransformerConfig):
    """Of any family that a ModelConfig describes. The fields are ModelConfig's."""

    attention_windows: tuple[int | None, ...] = ()
    attn_logit_softcapping: float | None = None
    post_norm: bool = False
    length_scaling: LengthScaling | None = None
    dual_chunk: DualChunk | None = None
    inverse_frequencies: tuple[float, ...] = ()
    """RoPE's, in radians per position; only with dual chunks, which turn queries further."""
