"""How attention reads positions past the length that a model was trained at: RoPE's scalings, dual chunks,
longer queries.

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
    """Longest sequence over the one that the model was trained at."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DynamicRope:
    """Dynamic NTK-aware scaling: the base grows with the sequence's length, beyond the length that was trained."""

    type: Literal["dynamic"] = "dynamic"

    factor: float = Field(ge=1)
    """How fast the base grows; the longest sequence is `factor` times the original one."""

    original_max_position_embeddings: int = Field(ge=1)
    """Longest sequence in training: up to it, RoPE is as it was."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class YarnRope:
    """YaRN (Peng et al. 2023): NTK by parts, and sharper attention."""

    type: Literal["yarn"] = "yarn"

    factor: float = Field(ge=1)
    """Longest sequence over the original one."""

    original_max_position_embeddings: int = Field(ge=1)
    """Longest sequence in training."""

    beta_fast: float = Field(default=32.0, gt=0)
    """Dimensions that turn more often than this over the original length keep their frequency."""

    beta_slow: float = Field(default=1.0, gt=0)
    """Dimensions that turn less often than this are interpolated whole."""

    attention_factor: float | None = Field(default=None, gt=0)
    """Scale of queries and of keys; none for 0.1 ln(factor) + 1 (section 3.4)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Llama3Rope:
    """Llama 3.1's scaling by wavelength: long ones are stretched by `factor`, short ones stay, between them a blend."""

    type: Literal["llama3"] = "llama3"

    factor: float = Field(default=8.0, ge=1)
    """Stretch of the long wavelengths."""

    low_freq_factor: float = Field(default=1.0, gt=0)
    """Wavelengths over original length / this are stretched whole."""

    high_freq_factor: float = Field(default=4.0, gt=0)
    """Wavelengths under original length / this stay."""

    original_max_position_embeddings: int = Field(default=8192, ge=1)
    """Longest sequence before the stretch."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DualChunk:
    """Dual chunk attention (An et al. 2024; Qwen2 technical report, section 2.2.1): positions that never leave a chunk.

    Keys count from the beginning of their chunk of `chunk_size - local_window` tokens. Queries do too where they read
    their own chunk; they stand beyond it where they read the one before,
    and at the chunk size where they read older ones.
    """

    chunk_size: int = Field(ge=2)
    """Largest distance between a query and a key as RoPE sees it; at most the length that the model was trained at."""

    local_window: int = Field(default=0, ge=0)
    """Tokens back that always keep their true distance, also across chunks. 0:
    distances to the chunk before are cut off at once."""

    @property
    def stride(self) -> int:
        """Tokens of one chunk."""
        return self.chunk_size - self.local_window

    @model_validator(mode="after")
    def _window_fits(self) -> "DualChunk":
        if self.local_window > self.chunk_size // 2:
            raise ValueError(
                f"local_window={self.local_window} is more than half of chunk_size={self.chunk_size}: it would reach "
                f"beyond the chunk before. Try local_window={self.chunk_size // 4}."
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LengthScaling:
    """Queries past the trained length are made longer, so that attention stays as sharp over more keys.

    A query at the n-th place of its row, n > L = `original_max_position_embeddings`, is multiplied by log n / log L
    (`logn`: Qwen technical report, section 2.3) or by 0.1 ln(n / L) + 1 (`yarn`: YaRN's,
    as Qwen2.5-1M has it with dual chunks).
    """

    type: Literal["logn", "yarn"] = "logn"

    original_max_position_embeddings: int = Field(ge=2)
    """Longest sequence in training: up to it, queries stay as they are."""


RopeScaling = Annotated[LinearRope | DynamicRope | YarnRope | Llama3Rope, Field(discriminator="type")]


Window = Annotated[int, Field(ge=1)] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PositionChange:
    """What a model's positions become; what is left out stays as it is."""

    max_position_embeddings: int | None = Field(default=None, ge=1)
    """Longest sequence, in tokens. Left out: at least as long as the batches' sequences."""

    rope_theta: float | None = Field(default=None, gt=0)
    """RoPE base. Qwen2 went from 10,000 to 1,000,000 for 32,768 tokens."""

    rope_scaling: RopeScaling | None = None
    """How RoPE is stretched past the length that it was trained at."""

    dual_chunk: DualChunk | None = None
    """Dual chunk attention."""

    length_scaling: LengthScaling | None = None
    """How queries grow past the length that was trained."""

    attention_windows: tuple[Window, ...] | None = None
    """Tokens that each layer's queries see back; [] for all."""
