"""The parallel layout of a model."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cupola_platform.strict import STRICT, Strict


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LayoutConfig:
    """How a model is distributed over processes. The world size is tp x pp x cp x dp."""

    tp: int = Field(default=1, ge=1)
    """Tensor-parallel size."""

    pp: int = Field(default=1, ge=1)
    """Pipeline-parallel size."""

    vp: int | None = Field(default=None, ge=2)
    """Model chunks per pipeline rank (interleaved schedule); None for 1F1B."""

    cp: int = Field(default=1, ge=1)
    """Context-parallel size."""

    ep: int = Field(default=1, ge=1)
    """Expert-parallel size; divides tp x cp x dp."""

    etp: int | None = Field(default=None, ge=1)
    """Tensor-parallel size inside experts; None for 1 when ep > 1, else tp."""

    dp: int = Field(default=1, ge=1)
    """Data-parallel size."""

    sp: bool = False
    """Sequence parallelism: shard the norms' activations over the tensor-parallel group. MoE with tp > 1 needs it."""

    distributed_optimizer: bool = True
    """Shard optimizer states over the data-parallel group."""

    overlap: bool = False
    """Overlap gradient reduction and parameter all-gather with computation, and with ep > 1 the exchange of tokens
    between experts with the shared expert."""

    recompute: Literal["none", "selective", "full"] = "none"
    """Activations to recompute in the backward pass: none; attention scores; or whole layers, from their input."""

    offload_optimizer: bool = False
    """Keep Adam's moments in the host's memory; they visit the device for each update. fp32 weights stay on the
    device."""

    offload_activations: bool = False
    """Keep what layers save for the backward pass in the host's memory, of all layers but the last. Needs Transformer
    Engine."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp * self.dp


class LayoutSettings(Strict):
    """Settings of everything that runs a model."""

    layout: LayoutConfig = Field(default_factory=LayoutConfig)
    """How the model is distributed over processes."""
