"""Run a command that is asked to end, once, when our parent ends, however that ends: `python tether.py PARENT COMMAND
...`.

Linux signals the death of a parent with several threads up to as many times as it has threads, and a second SIGTERM
finds torchrun in the middle of ending its ranks, where it then hangs for good. Between them, this process takes all and
passes one on.

A script of its own because Python between fork and exec may deadlock in a process that has threads.
"""

import ctypes
import os
import signal
import sys
import time

GRACE_SECONDS = 60.0
"""From SIGTERM to SIGKILL once the parent is gone. torchrun gives its ranks 30."""

_PR_SET_PDEATHSIG = 1
_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main(parent: int, command: list[str]) -> int:
    """Run `command` to its end. Returns its exit status, negative when a signal ended it."""
    if sys.platform != "linux":  # nobody tells of a parent's death there
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
    """Pass the first SIGTERM on, and kill a command that outlives it while nobody is left to do so."""
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
    """End this process as the command ended: by the same signal, or with the same status."""
    if status < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    _end_like(main(int(sys.argv[1]), sys.argv[2:]))
