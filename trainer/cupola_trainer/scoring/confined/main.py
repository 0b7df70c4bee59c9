"""Waits for answers; scores each in two new processes: the program's, which holds neither tests nor verdicts,
and the tests'.

Standard input, for each answer: one byte, then a part in JSON (`seconds`, `memory`, `filter`, `code`) and one with the
tests, each after its length in eight bytes. Standard output: READY once the kernel holds both processes, HELD or FAILED
for each test in order, END.
"""

import json
import os
import socket

from .limits import confine, die_with_parent
from .program import run_program
from .testing import run_tests

UNCONFINED = 3
"""Exit status when the kernel refused the limits; nothing of the program has run then."""
PARENT_SOCKET = 3
READY, HELD, FAILED, END = b"!", b"1", b"0", b"."


def main() -> None:
    """This process has no answer's code in memory, ever: it forks one that reads it."""
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
    """Fork the program's process before the tests are read, so that its memory never holds them. Ends the process."""
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
    """One part of standard input, and not a byte more."""
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
    """Leave the program one open file: its end of the socket."""
    kept = os.dup(end.detach())
    _silence()
    os.dup2(kept, PARENT_SOCKET)
    os.closerange(PARENT_SOCKET + 1, 1024)
