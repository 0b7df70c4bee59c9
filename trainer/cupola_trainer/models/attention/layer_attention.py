"""Megatron's self-attention where layers differ in their RoPE."""

from typing import Any

from megatron.core.transformer.attention import SelfAttention
from torch import Tensor


def has_window(config: Any, layer: int) -> bool:
    """Whether a layer, counted from 0 over the whole model, has a window."""
    windows = config.attention_windows
    return bool(windows) and windows[layer % len(windows)] is not None


def own_angles(angles: Tensor, window: bool) -> Tensor:
    """A layer's half of the angles [..., 2 * head_dim]: the second if it has a window."""
    return angles.chunk(2, dim=-1)[window]


class LayerAttention(SelfAttention):
    """Takes the layer's own angles of RoPE."""

    def forward(self, *args: Any, rotary_pos_emb: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        angles = own_angles(rotary_pos_emb, has_window(self.config, self.layer_number - 1))
        output: tuple[Tensor, Tensor] = super().forward(*args, rotary_pos_emb=angles, **kwargs)
        return output
