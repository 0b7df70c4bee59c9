"""The host allocator's handling of freed memory."""

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""mallopt's parameter numbers (malloc.h)."""


@cache
def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse, since training allocates the same sizes again. No effect with other C
    libraries.

    By default it maps each tensor above 32 MiB and unmaps it when freed, so the kernel zeroes its pages every time:
    a tenth of a step's CPU time with a large vocabulary.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)  # never
