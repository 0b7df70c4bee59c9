"""Whether a process is still running, even though PIDs are reused and clocks are set."""

import sys
from pathlib import Path

import psutil

FINGERPRINTED = False  # watches processes

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def start_of(pid: int) -> str | None:
    """A mark of a process's start that no other process has; None if it has ended.

    On Linux it is the boot id and the clock ticks since boot (field 22 of /proc/PID/stat), which do not change when the
    clock is set.
    """
    if sys.platform != "linux":
        return _start_by_psutil(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    state, ticks = fields[0], fields[19]  # fields 3 and 22; the name before them may contain spaces and brackets
    return None if state in (b"Z", b"X") else f"{_BOOT.read_text().strip()}:{ticks.decode()}"


def lives(pid: int, start: str) -> bool:
    """Whether the process with this PID and this `start_of` is still running."""
    return start != "" and start_of(pid) == start


def _start_by_psutil(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None
