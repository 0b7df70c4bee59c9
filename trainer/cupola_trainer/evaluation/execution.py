"""A model's Python, run to be scored: in a process of its own that can compute and nothing else.

Each answer runs in a fresh interpreter, in an empty folder and without environment, held by the kernel to a list of calls
(seccomp, see `confined.py`): it reads files, but writes, removes or renames none, opens no socket, starts no process and
signals none. Processor time, wall time and memory are limited. This guards the machine. It does not guard the score from an
answer that goes looking for its tests in its own process; read what scores high.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cupola_platform.errors import ConfigError

CONFINED = Path(__file__).with_name("confined.py")
UNCONFINED = 3
"""Exit status of a process that the kernel did not confine; the answer has not run then."""
STARTING = 10.0
"""Seconds that an interpreter may take to start on a busy machine, beside the answer's own."""


def code_of(answer: str) -> str:
    """The Python of an answer: its first fenced block, or all of it."""
    before, fence, rest = answer.partition("```")
    if not fence:
        return before
    block = rest.partition("```")[0]
    first, newline, body = block.partition("\n")
    return body if newline and first.strip().lower() in ("", "python", "py", "python3") else block


def passed(
    answer: str, tests: str | Sequence[str], timeout_seconds: float = 5.0, memory_bytes: int = 512 * 2**20
) -> float:
    """The share of tests that hold after the answer's code has run; 0 where it does not run to its end in time.

    Args:
        tests: Python statements, such as asserts, each run on its own; a text is one of them.

    Raises:
        ConfigError: this machine cannot confine a process.
    """
    if not tests:
        return 0.0
    tests = [tests] if isinstance(tests, str) else tests
    nonce = secrets.token_hex(16)
    told = {
        "code": code_of(answer), "tests": list(tests), "seconds": timeout_seconds, "memory": memory_bytes, "nonce": nonce,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="cupola-answer-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CONFINED)], cwd=folder, env={}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            output, _ = process.communicate(json.dumps(told).encode(), timeout=timeout_seconds + STARTING)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return 0.0
    if process.returncode == UNCONFINED:
        raise ConfigError(
            "This machine cannot confine a process (seccomp on Linux, x86-64 or ARM64), so no answer's code was run. "
            "Use another reward than code here, or another machine."
        )
    last = output.decode(errors="replace").rpartition(nonce)
    return int(last[2]) / len(tests) if last[1] and last[2].isdigit() else 0.0


def shares_passed(answers: Sequence[tuple[str, str | Sequence[str]]]) -> list[float]:
    """`passed` of each answer and its tests, as many at a time as there are cores.

    Raises:
        ConfigError: this machine cannot confine a process.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda pair: passed(*pair), answers))
