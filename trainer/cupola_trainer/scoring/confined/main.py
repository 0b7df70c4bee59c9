"""Waits for responses and scores each in two new processes: the program's, which has neither tests nor verdicts, and
the tests'.

Standard input, per response: one byte, then a JSON part (`seconds`, `memory`, `filter`, `code`) and a JSON part with
the tests, each prefixed by its length in eight bytes. Standard output: READY once both processes are sandboxed, HELD or
FAILED per test in order, END.
"""

import json
import os
import socket

from .limits import confine, die_with_parent
from .program import run_program
from .testing import run_tests

UNCONFINED = 3
"""Exit status if the kernel refused the limits; none of the program has run."""
PARENT_SOCKET = 3
READY, HELD, FAILED, END = b"!", b"1", b"0", b"."


def main() -> None:
    """Fork a process per response. This one never has a response's code in memory."""
    die_with_parent(os.getppid())
    waiter = os.getpid()
    while os.read(0, 1):
        child = os.fork()
        if child == 0:
            die_with_parent(waiter)
            score()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            os._exit(status if status > 0 else 1)
        os.write(1, END)


def score() -> None:
    """Score one response. Forks the program's process before reading the tests, so its memory never holds them.
    Exits."""
    request = json.loads(_read_part())
    limits = request["seconds"], request["memory"], bytes.fromhex(request["filter"])
    ours, theirs = socket.socketpair()
    tester = os.getpid()
    if os.fork() == 0:
        die_with_parent(tester)
        _keep_only(theirs)
        if confine(*limits):
            os.write(PARENT_SOCKET, READY)
            run_program(request["code"], PARENT_SOCKET)
        os._exit(0)
    theirs.close()
    tests = json.loads(_read_part())
    verdicts = os.dup(1)
    _silence()
    if not confine(*limits) or os.read(ours.fileno(), 1) != READY:
        os._exit(UNCONFINED)
    os.write(verdicts, READY)
    for held in run_tests(tests, ours.fileno()):
        os.write(verdicts, HELD if held else FAILED)
    os._exit(0)


def _read_part() -> bytes:
    """Read exactly one part from standard input."""
    return _read(int.from_bytes(_read(8), "big"))


def _read(size: int) -> bytes:
    parts = []
    while size and (part := os.read(0, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _silence() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)


def _keep_only(end: socket.socket) -> None:
    """Close all files but the program's end of the socket."""
    kept = os.dup(end.detach())
    _silence()
    os.dup2(kept, PARENT_SOCKET)
    os.closerange(PARENT_SOCKET + 1, 1024)
