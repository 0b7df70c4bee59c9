"""Offloading is off."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor


def get_cpu_offload_context(
    enabled: bool = False,
    num_layers: int = 1,
    model_layers: int = 1,
    offload_activations: bool = True,
    offload_weights: bool = False,
    double_buffering: bool = False,
) -> tuple[AbstractContextManager[None], Callable[[Tensor], Tensor]]:
    """A context for the layers, and a function to call after each."""
    if not (offload_activations or offload_weights):
        raise ValueError("CPU offloading needs something to offload")
    if enabled:
        raise NotImplementedError("the stand-in for Transformer Engine has no offloading")
    return nullcontext(), lambda tensor: tensor
