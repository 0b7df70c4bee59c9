"""Attention beyond the trained length: RoPE scaling, dual chunks, scaled queries.

Nothing here imports torch.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cupola_platform.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LinearRope:
    """Position interpolation (Chen et al. 2023): positions divided by `factor`."""

    type: Literal["linear"] = "linear"

    factor: float = Field(ge=1)
    """Longest sequence divided by the trained length."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DynamicRope:
    """Dynamic NTK-aware scaling: beyond the trained length, the base grows with the sequence length."""

    type: Literal["dynamic"] = "dynamic"

    factor: float = Field(ge=1)
    """How fast the base grows; the longest sequence is `factor` times the original length."""

    original_max_position_embeddings: int = Field(ge=1)
    """Longest sequence in training, up to which RoPE is unchanged."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class YarnRope:
    """YaRN (Peng et al. 2023): NTK-by-parts and attention temperature."""

    type: Literal["yarn"] = "yarn"

    factor: float = Field(ge=1)
    """Longest sequence divided by the original length."""

    original_max_position_embeddings: int = Field(ge=1)
    """Longest sequence in training."""

    beta_fast: float = Field(default=32.0, gt=0)
    """Dimensions with more rotations than this over the original length keep their frequency."""

    beta_slow: float = Field(default=1.0, gt=0)
    """Dimensions with fewer rotations than this are fully interpolated."""

    attention_factor: float | None = Field(default=None, gt=0)
    """Scale of queries and keys; None for 0.1 ln(factor) + 1 (section 3.4)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Llama3Rope:
    """Llama 3.1's scaling by wavelength: long ones stretched by `factor`, short ones unchanged, a blend in between."""

    type: Literal["llama3"] = "llama3"

    factor: float = Field(default=8.0, ge=1)
    """Stretch of the long wavelengths."""

    low_freq_factor: float = Field(default=1.0, gt=0)
    """Wavelengths above original length / this are fully stretched."""

    high_freq_factor: float = Field(default=4.0, gt=0)
    """Wavelengths below original length / this are unchanged."""

    original_max_position_embeddings: int = Field(default=8192, ge=1)
    """Longest sequence before scaling."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DualChunk:
    """Dual chunk attention (An et al. 2024; Qwen2 technical report, section 2.2.1): distances stay within a chunk.

    Key positions count from the start of their chunk of `chunk_size - local_window` tokens. So do query positions
    within their own chunk; for the previous chunk they continue past it, and for older chunks they are fixed at the
    chunk size.
    """

    chunk_size: int = Field(ge=2)
    """Largest distance between query and key that RoPE sees; at most the trained length."""

    local_window: int = Field(default=0, ge=0)
    """Distance in tokens within which positions stay exact, even across chunks; 0 for none."""

    @property
    def stride(self) -> int:
        """Tokens per chunk."""
        return self.chunk_size - self.local_window

    @model_validator(mode="after")
    def _window_fits(self) -> "DualChunk":
        if self.local_window > self.chunk_size // 2:
            raise ValueError(
                f"local_window={self.local_window} is more than half of chunk_size={self.chunk_size}: it would reach "
                f"past the previous chunk. Try local_window={self.chunk_size // 4}."
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LengthScaling:
    """Scales up queries beyond the trained length, to keep attention as sharp over more keys.

    A query at position n > L = `original_max_position_embeddings` is multiplied by log n / log L (`logn`: Qwen
    technical report, section 2.3) or by 0.1 ln(n / L) + 1 (`yarn`: YaRN's, used by Qwen2.5-1M with dual chunks).
    """

    type: Literal["logn", "yarn"] = "logn"

    original_max_position_embeddings: int = Field(ge=2)
    """Longest sequence in training, up to which queries are unchanged."""


RopeScaling = Annotated[LinearRope | DynamicRope | YarnRope | Llama3Rope, Field(discriminator="type")]


Window = Annotated[int, Field(ge=1)] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PositionChange:
    """Changes to a model's positions; omitted fields stay unchanged."""

    max_position_embeddings: int | None = Field(default=None, ge=1)
    """Longest sequence, in tokens. None: at least `batch.sequence_length`."""

    rope_theta: float | None = Field(default=None, gt=0)
    """RoPE base. Qwen2 raised it from 10,000 to 1,000,000 for 32,768 tokens."""

    rope_scaling: RopeScaling | None = None
    """RoPE scaling beyond the trained length."""

    dual_chunk: DualChunk | None = None
    """Dual chunk attention."""

    length_scaling: LengthScaling | None = None
    """Scaling of queries beyond the trained length."""

    attention_windows: tuple[Window, ...] | None = None
    """Sliding window of each layer, in tokens; [] for full attention."""
