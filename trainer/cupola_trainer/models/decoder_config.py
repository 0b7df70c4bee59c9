"""Megatron's TransformerConfig with the fields it lacks."""

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from cupola_trainer.config.model.positions import DualChunk, LengthScaling


@dataclass
class DecoderConfig(TransformerConfig):
    """TransformerConfig for any family that a ModelConfig describes. The added fields are ModelConfig's."""

    attention_windows: tuple[int | None, ...] = ()
    attn_logit_softcapping: float | None = None
    post_norm: bool = False
    length_scaling: LengthScaling | None = None
    dual_chunk: DualChunk | None = None
    inverse_frequencies: tuple[float, ...] = ()
    """RoPE's frequencies, in radians per position; only for dual chunks, which rotate queries further."""
    plain_layers: bool = False
    """Whether to use torch's layers even where Transformer Engine is installed."""
