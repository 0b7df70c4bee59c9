"""The device, and its peak by the vendor's data sheets."""

import importlib.util

import torch

HAS_TRANSFORMER_ENGINE = importlib.util.find_spec("transformer_engine") is not None
"""Whether it is installed. Megatron's own flag is read later: it must be imported through cupola_trainer."""

PEAKS = {
    "NVIDIA B200": (
        2250e12,
        "NVIDIA DGX B200 data sheet: 72 PFLOP/s FP8 with and 36 without sparsity, of 8 GPUs; bf16 half",
    ),
    "NVIDIA H200": (989e12, "NVIDIA H200 data sheet: bf16 1,979 TFLOP/s with sparsity"),
    "NVIDIA H100 80GB HBM3": (989e12, "NVIDIA H100 data sheet, SXM: bf16 1,979 TFLOP/s with sparsity"),
    "NVIDIA H100 PCIe": (756e12, "NVIDIA H100 data sheet, PCIe: bf16 1,513 TFLOP/s with sparsity"),
    "NVIDIA H100 NVL": (835e12, "NVIDIA H100 data sheet, NVL: bf16 1,671 TFLOP/s with sparsity"),
    "NVIDIA A100-SXM4-80GB": (312e12, "NVIDIA A100 data sheet: bf16 312 TFLOP/s"),
    "NVIDIA A100-SXM4-40GB": (312e12, "NVIDIA A100 data sheet: bf16 312 TFLOP/s"),
    "NVIDIA A100 80GB PCIe": (312e12, "NVIDIA A100 data sheet: bf16 312 TFLOP/s"),
    "NVIDIA L40S": (362e12, "NVIDIA L40S data sheet: bf16 733 TFLOP/s with sparsity"),
}
"""Peak FLOP/s of dense bf16 products by the name that torch gives the device, and where the figure is from. Data sheets
that give products with sparsity are halved."""


def name() -> str:
    """The device's name; `CPU` without a GPU."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "CPU"


def peak_flops() -> float | None:
    """The device's peak in bf16; None if it is not in `PEAKS`."""
    return PEAKS[name()][0] if name() in PEAKS else None


def peak_note() -> str:
    """Where the peak is from, or that there is none, so no MFU."""
    return (
        PEAKS[name()][1] if name() in PEAKS else f"no peak is known for {name()}, so there is no MFU: add it to PEAKS"
    )
