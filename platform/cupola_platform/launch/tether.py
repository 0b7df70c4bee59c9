"""Run a command that gets exactly one SIGTERM when our parent ends, for whatever reason.

Usage: `python tether.py PARENT COMMAND ...`. Linux may signal the death of a multi-threaded parent once per thread, and
a second SIGTERM hangs torchrun for good while it ends its ranks. This process sits between them and passes on only one.

It is a separate script because Python between fork and exec may deadlock in a multi-threaded process.
"""

import ctypes
import os
import signal
import sys
import time

GRACE_SECONDS = 60.0
"""Seconds from SIGTERM to SIGKILL once the parent is gone. torchrun gives its ranks 30."""

_PR_SET_PDEATHSIG = 1
_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main(parent: int, command: list[str]) -> int:
    """Run `command` and return its exit status, negative if a signal ended it."""
    if sys.platform != "linux":  # the parent's death is not signalled there
        os.execv(command[0], command)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    _end_with(parent)
    us = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        _end_with(us)
        os.execv(command[0], command)
    return _follow(child, parent)


def _end_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(128 + signal.SIGTERM)


def _follow(child: int, parent: int) -> int:
    """Pass on the first SIGTERM, and kill a command that outlives it when the parent is gone."""
    deadline = float("inf")
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        came = signal.sigtimedwait(_AWAITED, 3600.0 if deadline == float("inf") else 0.5)
        if came and came.si_signo == signal.SIGTERM and deadline == float("inf"):
            os.kill(child, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline and os.getppid() != parent:
            os.kill(child, signal.SIGKILL)


def _end_like(status: int) -> None:
    """End this process the way the command ended: by the same signal, or with the same status."""
    if status < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    _end_like(main(int(sys.argv[1]), sys.argv[2:]))
