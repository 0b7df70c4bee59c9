"""A model's Python, run to be scored.

Each response runs in a process that can compute and nothing else (see `sandbox.py`), its tests in a second one that
calls it (see `confined/`). The second says of each test whether it holds, and the count of that is made here.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cupola_trainer.scoring import sandbox, workers


def code_of(response: str) -> str:
    """The Python of a response: its first fenced block, or all of it."""
    before, fence, rest = response.partition("```")
    if not fence:
        return before
    block = rest.partition("```")[0]
    first, newline, body = block.partition("\n")
    return body if newline and first.strip().lower() in ("", "python", "py", "python3") else block


def passed(
    response: str, tests: str | Sequence[str], timeout_seconds: float = 5.0, memory_bytes: int = 512 * 2**20
) -> float:
    """The share of tests that hold after the response's code has run; 0 where it ends itself, or does not end in time.

    Args:
        tests: Python statements, such as asserts, each run on its own; a text is one of them.
        timeout_seconds: wall time of the code and all tests.
        memory_bytes: of the code's process, and of the tests'.

    Raises:
        ConfigError: this machine cannot confine a process.
        RuntimeError: no process starts.
    """
    if not tests:
        return 0.0
    tests = [tests] if isinstance(tests, str) else list(tests)
    job = {
        "code": code_of(response), "seconds": timeout_seconds, "memory": memory_bytes,
        "filter": sandbox.call_filter().hex(),
    }  # fmt: skip
    parts = [json.dumps(part).encode() for part in (job, tests)]
    request = b"!" + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return workers.count_held(request, len(tests), timeout_seconds) / len(tests)


def shares_passed(responses: Sequence[tuple[str, str | Sequence[str]]]) -> list[float]:
    """`passed` of each response and its tests, as many at a time as there are cores.

    Raises:
        ConfigError: this machine cannot confine a process.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda pair: passed(*pair), responses))
