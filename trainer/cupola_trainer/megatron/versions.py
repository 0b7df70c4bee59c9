"""The releases of Megatron-Core that the patches were tested with; others may have moved what they replace."""

import logging
from importlib import metadata

TRIED = ("0.16.1", "0.17.1")
"""The first is the pinned one."""

logger = logging.getLogger(__name__)


def check_version() -> None:
    """Warn if a release not in `TRIED` is installed."""
    try:
        installed = metadata.version("megatron-core")
    except metadata.PackageNotFoundError:
        installed = "of an unknown version"
    if installed not in TRIED:
        logger.warning(
            "megatron-core %s is installed; Cupola patches it, and was tested with %s only. Run `pytest "
            "tests/trainer/megatron`, or install a tested release: pip install megatron-core==%s",
            installed,
            ", ".join(TRIED),
            TRIED[0],
        )
