"""Which releases of Megatron-Core the patches were tried with: another one may have moved what they replace."""

import logging
from importlib import metadata

TRIED = ("0.16.1", "0.17.1")
"""The first one is that of the pins."""

logger = logging.getLogger(__name__)


def check_version() -> None:
    """Warn where another release than those of `TRIED` is installed."""
    try:
        installed = metadata.version("megatron-core")
    except metadata.PackageNotFoundError:
        installed = "of an unknown version"
    if installed not in TRIED:
        logger.warning(
            "megatron-core %s is installed; Cupola patches it, and was tried with %s only. Run `pytest "
            "tests/trainer/megatron`, or install what was tried: pip install megatron-core==%s",
            installed,
            ", ".join(TRIED),
            TRIED[0],
        )
