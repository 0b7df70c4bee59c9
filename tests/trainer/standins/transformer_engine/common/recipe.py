"""FP8 recipes: how values are scaled into FP8's range."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Format(Enum):
    """The largest magnitude forward and backward."""

    E4M3 = (448.0, 448.0)
    HYBRID = (448.0, 57344.0)


@dataclass
class Recipe:
    """What all recipes answer."""

    fp8_format: Format = Format.HYBRID

    def delayed(self) -> bool:
        return isinstance(self, DelayedScaling)

    def mxfp8(self) -> bool:
        return isinstance(self, MXFP8BlockScaling)

    def float8_current_scaling(self) -> bool:
        return isinstance(self, Float8CurrentScaling)

    def float8_block_scaling(self) -> bool:
        return isinstance(self, Float8BlockScaling)


@dataclass(init=False)
class DelayedScaling(Recipe):
    """Scales from the largest magnitudes of earlier passes. Like the original, ignores arguments that it lacks."""

    margin: int = 0
    amax_history_len: int = 1024
    amax_compute_algo: str = "max"

    def __init__(
        self,
        margin: int = 0,
        fp8_format: Format = Format.HYBRID,
        amax_history_len: int = 1024,
        amax_compute_algo: str = "max",
        **ignored: Any,
    ) -> None:
        self.margin, self.fp8_format = margin, fp8_format
        self.amax_history_len, self.amax_compute_algo = amax_history_len, amax_compute_algo


@dataclass
class Float8CurrentScaling(Recipe):
    """A scale from the tensor's own largest magnitude."""

    fp8_dpa: bool = False


@dataclass
class Float8BlockScaling(Recipe):
    """A scale, a power of two, for each 1 x 128 of activations and gradients, and 128 x 128 of weights."""

    fp8_format: Format = field(default=Format.E4M3)


@dataclass
class MXFP8BlockScaling(Recipe):
    """A scale, a power of two, for each 1 x 32."""

    fp8_format: Format = field(default=Format.E4M3)
