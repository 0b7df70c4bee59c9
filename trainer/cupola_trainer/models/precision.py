"""FP8 in a model's decoder: Megatron's settings for it, and passes without it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from cupola_trainer.config.precision import Fp8Config

NAMES = {"delayed": "delayed", "current": "tensorwise", "block": "blockwise", "mxfp8": "mxfp8"}
"""Megatron's names of the recipes."""
FORMATS = {"delayed": "hybrid", "current": "hybrid", "block": "e4m3", "mxfp8": "e4m3"}
"""Transformer Engine's default format of each: `hybrid` has E5M2 gradients, which scales of blocks make unnecessary."""
HISTORY = 1024
"""Passes that delayed scaling looks back, Transformer Engine's default."""


def fp8_settings(fp8: Fp8Config | None) -> dict[str, Any]:
    """The part of Megatron's configuration that says which layers compute in FP8; None for none."""
    if fp8 is None:
        return {}
    first, last = fp8.in_bf16
    return {
        "fp8": FORMATS[fp8.recipe],
        "fp8_recipe": NAMES[fp8.recipe],
        "fp8_amax_history_len": HISTORY,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": bool(first or last),
        "num_layers_at_start_in_bf16": first,
        "num_layers_at_end_in_bf16": last,
    }


@contextmanager
def without_fp8(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Compute in bf16 within the block, as whoever uses the checkpoint will. Delayed scaling then remembers only what
    training saw, however often it is interrupted by an evaluation."""
    configs = _configurations(chunks) if any(_computes_in_fp8(chunk) for chunk in chunks) else []
    formats = [config.fp8 for config in configs]
    for config in configs:
        config.fp8 = None
    try:
        yield
    finally:
        for config, form in zip(configs, formats, strict=True):
            config.fp8 = form


def _computes_in_fp8(chunk: torch.nn.Module) -> bool:
    return getattr(getattr(chunk, "config", None), "fp8", None) is not None


def _configurations(chunks: Sequence[torch.nn.Module]) -> list[Any]:
    """Each configuration in the chunks' modules once: some modules have copies."""
    configs = (getattr(module, "config", None) for chunk in chunks for module in chunk.modules())
    return list({id(config): config for config in configs if hasattr(config, "fp8")}.values())
