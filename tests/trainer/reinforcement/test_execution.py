"""A model's code is scored, and can do nothing else."""

import socket
import time
from pathlib import Path

import pytest

from cupola_trainer.evaluation.execution import code_of, passed, shares_passed

SQUARE = ["assert square(3) == 9", "assert square(-2) == 4", "assert square(0) == 0", "assert square(2) == 5"]


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("def square(x):\n    return x * x", 0.75),
        ("Here it is:\n```python\ndef square(x):\n    return x ** 2\n```\nDone.", 0.75),
        ("def square(x):\n    return 5", 0.25),
        ("def square(x): return x *", 0.0),
        ("raise SystemExit(0)", 0.0),
        ("import math, re, collections\ndef square(x):\n    return int(math.pow(x, 2))", 0.75),
        ("", 0.0),
        ("\0", 0.0),
    ],
)
def test_the_score_is_the_share_of_tests_that_hold(answer: str, share: float) -> None:
    assert passed(answer, SQUARE) == share


def test_tests_may_be_one_text_and_many_answers_are_scored_at_once() -> None:
    together = "\n".join(SQUARE[:3])
    right, wrong = "def square(x):\n    return x * x", "def square(x):\n    return 9"
    assert shares_passed([(right, together), (wrong, together), (wrong, SQUARE)]) == [1.0, 0.0, 0.25]


def test_code_is_taken_from_the_first_fenced_block() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("Sure.\n```\nx = 2\n```\n```\nx = 3\n```") == "x = 2\n"
    assert code_of("```py\nx = 4") == "x = 4"


@pytest.mark.parametrize("loop", ["while True: pass", "import time\ntime.sleep(60)"])
def test_an_answer_that_does_not_end_is_ended(loop: str) -> None:
    began = time.monotonic()
    assert passed(loop, ["assert True"], timeout_seconds=0.5) == 0
    assert time.monotonic() - began < 8


def test_an_answer_cannot_take_more_memory_than_it_is_given() -> None:
    assert (
        passed(
            "try:\n    x = bytearray(2**30)\n    fits = True\nexcept MemoryError:\n    fits = False",
            ["assert not fits"],
        )
        == 1
    )


@pytest.mark.parametrize(
    "attempt",
    [
        "open('{folder}/new', 'w')",
        "open('{folder}/kept', 'r+')",
        "__import__('os').remove('{folder}/kept')",
        "__import__('os').rename('{folder}/kept', '{folder}/moved')",
        "__import__('os').truncate('{folder}/kept', 0)",
        "__import__('os').mkdir('{folder}/made')",
        "__import__('os').fork()",
        "__import__('os').kill(1, 0)",
        "__import__('os').execv('/bin/true', ['true'])",
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', {port}))",
        "__import__('resource').setrlimit(0, (60, 60))",
    ],
)
def test_whatever_reaches_outside_is_refused_by_the_kernel(attempt: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = attempt.format(folder=tmp_path, port=server.getsockname()[1])
        answer = f"try:\n    {line}\n    refused = False\nexcept (PermissionError, ValueError):\n    refused = True"
        assert passed(answer, ["assert refused"]) == 1, attempt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "kept")]


def test_ctypes_is_no_way_around(tmp_path: Path) -> None:
    call = f"import ctypes\nresult = ctypes.CDLL(None).open(b'{tmp_path}/new', 0o101, 0o600)"
    assert passed(call, ["assert result == -1"]) == 1
    assert not list(tmp_path.iterdir())


def test_an_answer_sees_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPOLA_SECRET", "x")
    assert passed("import os", ["assert 'CUPOLA_SECRET' not in os.environ"]) == 1
