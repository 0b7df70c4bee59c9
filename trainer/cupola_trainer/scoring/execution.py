"""Run a model's Python to score it.

Each response runs in a process that can only compute (see `sandbox.py`), its tests in a second one that calls it (see
`confined/`). The second process reports whether each test passed; this module counts them.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cupola_trainer.scoring import sandbox, workers


def code_of(response: str) -> str:
    """The Python code in a response: its first fenced block, or all of it."""
    before, fence, rest = response.partition("```")
    if not fence:
        return before
    block = rest.partition("```")[0]
    first, newline, body = block.partition("\n")
    return body if newline and first.strip().lower() in ("", "python", "py", "python3") else block


def passed(
    response: str, tests: str | Sequence[str], timeout_seconds: float = 5.0, memory_bytes: int = 512 * 2**20
) -> float:
    """The share of tests that pass after running the response's code; 0 if the code exits or times out.

    Args:
        tests: Python statements, such as asserts, each run separately; a single string is one test.
        timeout_seconds: wall time for the code and all tests.
        memory_bytes: address space for each of the two processes.

    Raises:
        ConfigError: this machine cannot sandbox a process.
        RuntimeError: no process could be started.
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
    """`passed` for each response and its tests, in parallel on all cores.

    Raises:
        ConfigError: this machine cannot sandbox a process.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda pair: passed(*pair), responses))
