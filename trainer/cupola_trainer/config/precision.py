"""In which precision a model trains."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cupola_platform.strict import STRICT

Precision = Literal["auto", "fp32", "bf16", "fp8"]


def bytes_per_value(precision: str, *, gpu: bool) -> int:
    """Bytes of a weight or activation; `auto` is bf16 on a GPU and fp32 on a CPU. FP8 only multiplies in less."""
    return 4 if precision == "fp32" or (precision == "auto" and not gpu) else 2


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fp8Config:
    """FP8 matrix products in the decoder's linear layers, by Transformer Engine. Weights stay bf16, with fp32 masters;
    embedding, attention, norms, router and output layer compute in bf16."""

    recipe: Literal["delayed", "current", "block", "mxfp8"] = "current"
    """How values are scaled into FP8's range. `delayed`: a tensor by its largest magnitude in the last 1,024 passes;
    `current`: a tensor by its own largest magnitude; `block`: 1 x 128 of activations and 128 x 128 of weights, as
    DeepSeek-V3 did, on Hopper; `mxfp8`: 1 x 32, on Blackwell."""

    first_layers: int | None = Field(default=None, ge=0)
    """Layers at the start that stay in bf16, where rounding hurts most. None for 1, or 0 with `delayed`."""

    last_layers: int | None = Field(default=None, ge=0)
    """The same at the end."""

    @property
    def in_bf16(self) -> tuple[int, int]:
        """Layers at the start and at the end that stay in bf16."""
        default = 0 if self.recipe == "delayed" else 1
        first, last = self.first_layers, self.last_layers
        return default if first is None else first, default if last is None else last
