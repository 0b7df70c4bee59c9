"""What the host does with the memory of freed tensors."""

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""mallopt's numbers (malloc.h)."""


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what comes next, which in training is the same again.
    Other C libraries stay as they are.

    Left to itself it maps each tensor of more than 32 MiB anew and gives it back when freed,
    so that the kernel clears its
    pages each time: a tenth of the processor time of a step where the vocabulary is large.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)  # never
