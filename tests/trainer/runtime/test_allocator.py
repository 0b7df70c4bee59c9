"""Page faults after freeing a large tensor, in a separate process, since the setting is per process."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, torch
from cupola_trainer.runtime.allocator import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: 4 KiB pages on any machine
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):  # until the heap has room between live allocations
    torch.ones(16 << 20)  # 64 MiB, freed immediately
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator that is asked to keep memory is glibc's")
def test_the_kernel_does_not_zero_the_pages_of_a_freed_tensor_again() -> None:
    assert faults("left alone") > 10_000  # 16,384 pages
    assert faults("kept") < 100
