"""The releases of Megatron-Core that the patches were tested with, and what differs between them; others may have
moved what the patches replace."""

import logging
import platform
import re
from functools import partial
from importlib import metadata
from typing import Any

from cupola_platform.errors import ConfigError

TRIED = ("0.16.1", "0.17.1", "0.19.2")
"""The first is the pinned one. From 0.18 on it imports Triton, which torch brings only on machines with GPUs."""

PYTHON = ((3, 11), (3, 13))
TORCH = ((2, 9), (2, 13))
"""First and last minor version that the trainer runs on."""

logger = logging.getLogger(__name__)


def check_versions() -> None:
    """Refuse Pythons and torches outside the ranges, and warn of a Megatron-Core not in `TRIED`.

    Raises:
        ConfigError: the running Python or the installed torch is outside its range.
    """
    _refuse("Python", platform.python_version(), PYTHON, "make clean install PYTHON=/path/to/python3.11")
    _refuse("torch", _installed("torch"), TORCH, f"pip install 'torch=={TORCH[1][0]}.{TORCH[1][1]}.*'")
    if (installed := _installed("megatron-core")) not in TRIED:
        logger.warning(
            "megatron-core %s is installed; Cupola patches it, and was tested with %s only. Run `pytest "
            "tests/trainer/megatron`, or install a tested release: pip install megatron-core==%s",
            installed or "of an unknown version",
            ", ".join(TRIED),
            TRIED[0],
        )


def _refuse(name: str, version: str, supported: tuple[tuple[int, int], tuple[int, int]], move: str) -> None:
    first, last = supported
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2]) if version else first
    if not first <= (major, minor) <= last:
        oldest, newest = (".".join(map(str, each)) for each in supported)
        raise ConfigError(f"{name} {version}: the trainer runs on {name} {oldest} to {newest}. Install one: {move}")


def _installed(name: str) -> str:
    """The version of an installed distribution; empty without metadata."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def submodules_of(builder: Any) -> Any:
    """What a module will be made of. Its builder is a ModuleSpec, or from Megatron-Core 0.17 on a partial function."""
    return builder.keywords.get("submodules") if isinstance(builder, partial) else builder.submodules


def building(builder: Any, theirs: type, ours: type) -> Any:
    """The builder with our class in place of theirs; unchanged if it builds another."""
    if isinstance(builder, partial):
        return partial(ours, *builder.args, **builder.keywords) if builder.func is theirs else builder
    if builder.module is theirs:
        builder.module = ours
    return builder
