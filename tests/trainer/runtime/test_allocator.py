"""What freeing a large tensor costs the next one, in a process of its own: the setting is the process's."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, torch
from cupola_trainer.runtime.allocator import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of 4 KiB, whatever the machine prefers
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):  # until the heap has room for it between what stays
    torch.ones(16 << 20)  # 64 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator that is asked to keep memory is glibc's")
def test_the_kernel_does_not_clear_the_pages_of_a_freed_tensor_anew() -> None:
    assert faults("left alone") > 10_000  # 16,384 pages
    assert faults("kept") < 100
