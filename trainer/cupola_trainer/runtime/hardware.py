"""What a node has: GPUs, driver, libraries."""

import re
from pathlib import Path

import torch

FINGERPRINTED = False  # only looks

DRIVER = Path("/proc/driver/nvidia/version")


def gpus() -> tuple[tuple[str, float], ...]:
    """Name and memory (GiB) of every GPU that this process sees; none on a CPU."""
    seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple((each.name, each.total_memory / 2**30) for each in seen)


def driver_versions() -> dict[str, str]:
    """Versions of the NVIDIA driver, CUDA and NCCL; none on a CPU."""
    if not torch.cuda.is_available():
        return {}
    versions = {"CUDA": str(torch.version.cuda), "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
    if DRIVER.exists() and (driver := re.search(r"Kernel Module.*?(\d+(?:\.\d+)+)", DRIVER.read_text())):
        versions["driver"] = driver[1]
    return versions
