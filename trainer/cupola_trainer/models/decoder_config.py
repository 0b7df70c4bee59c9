"""Megatron's TransformerConfig with the fields it lacks."""

from dataclasses import dataclass

from megatron.core.transformer import TransformerConfig

from cupola_trainer.config.model.positions import DualChunk, LengthScaling


@dataclass
class DecoderConfig(TransformerConfig):
    """TransformerConfig for any family that a ModelConfig describes. The added fields are ModelConfig's."""

    attention_windows: tuple[int | None, ...] = ()
    attn_logit_softcapping: float | None = None
    pre_norm: bool = True
    post_norm: bool = False
    joint_qk_norm: bool = False
    local_rope: bool = False
    """Whether layers with a window have a RoPE of their own."""
    length_scaling: LengthScaling | None = None
    dual_chunk: DualChunk | None = None
    inverse_frequencies: tuple[float, ...] = ()
    """RoPE's frequencies, in radians per position; only for dual chunks, which rotate queries further."""
    plain_layers: bool = False
    """Whether to use torch's layers even where Transformer Engine is installed."""
