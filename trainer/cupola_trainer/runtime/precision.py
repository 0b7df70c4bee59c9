"""What this rank's device can compute in, offload and hold, asked before anything starts."""

import importlib.util
import os

import torch

from cupola_platform.errors import ConfigError
from cupola_platform.launch.local import host_memory
from cupola_trainer.config.layout import LayoutConfig
from cupola_trainer.config.precision import Fp8Config, Precision
from cupola_trainer.config.precision_rules import refuse_without_gpu

FINGERPRINTED = False  # only refuses, computes nothing

BF16 = (8, 0)
"""Least compute capability of a GPU that multiplies in bf16."""
OLDEST_FP8 = (8, 9)
"""The same for FP8, whatever the recipe."""


def _own() -> int:
    """Number of this rank's GPU, which it has not yet chosen when it is asked about."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def has_transformer_engine() -> bool:
    """Whether Transformer Engine is installed."""
    return importlib.util.find_spec("transformer_engine") is not None


def check_device(precision: Precision, fp8: Fp8Config, layout: LayoutConfig) -> None:
    """Refuse what this rank's device, or what is installed beside it, does not support.

    Raises:
        ConfigError: names the device and what it lacks.
    """
    if torch.cuda.is_available():
        check_precision(precision, fp8)
        _check_offloading(layout)
    else:
        refuse_without_gpu(precision, layout, "this machine")


def check_precision(precision: Precision, fp8: Fp8Config) -> None:
    """Refuse a precision that this rank's GPU, or what is installed beside it, does not support.

    Raises:
        ConfigError: names the GPU and what it lacks.
    """
    name, capability = torch.cuda.get_device_name(_own()), torch.cuda.get_device_capability(_own())
    device = f"{name} (compute capability {'.'.join(map(str, capability))})"
    if precision != "fp32" and capability < BF16:
        raise ConfigError(f"precision={precision} needs a GPU that computes in bf16, and {device} does not. Use fp32.")
    if precision == "fp8" and (reason := _why_no_fp8(fp8, capability)):
        raise ConfigError(f"precision=fp8 with fp8.recipe={fp8.recipe} on {device}: {reason}")


def _why_no_fp8(fp8: Fp8Config, capability: tuple[int, int]) -> str:
    """What the recipe lacks here; empty if nothing."""
    if capability < OLDEST_FP8:
        return "FP8 needs compute capability 8.9 or higher. Use precision=bf16."
    if not has_transformer_engine():
        return (
            "FP8 needs Transformer Engine, which is not installed. Install it (pip install "
            "'transformer-engine[pytorch]'), or use precision=bf16."
        )
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager as Manager

    ask = {"block": Manager.is_fp8_block_scaling_available, "mxfp8": Manager.is_mxfp8_available}
    available, reason = ask.get(fp8.recipe, Manager.is_fp8_available)()
    return "" if available else f"Transformer Engine answers: {reason} Use another fp8.recipe, or precision=bf16."


def _check_offloading(layout: LayoutConfig) -> None:
    if layout.offload_activations and not has_transformer_engine():
        raise ConfigError(
            "layout.offload_activations=true needs Transformer Engine, which is not installed. Install it (pip install "
            "'transformer-engine[pytorch]'), or use recompute=full."
        )


def memory() -> float:
    """Bytes that this rank may use at most: its GPU's, or on a CPU its share of the machine's."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(_own()).total_memory)
    return host_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
