"""At 32K tokens every objective's memory is linear in the length, packed or not, on one context-parallel rank or two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("long_ranks.py")
GIB = 1 << 30
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def measured(tmp_path: Path, torchrun: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def measure(objective: str, length: int, ranks: int) -> dict[str, Any]:
        torchrun(ranks, SCRIPT, objective, length, tmp_path / f"{length}.json", timeout=800)
        found: dict[str, Any] = json.loads((tmp_path / f"{length}.json").read_text())
        return found

    return measure


@pytest.mark.parametrize(
    ("objective", "ranks"),
    [("sft", 1), ("sft", 2), ("dpo", 1), ("grpo", 1), ("next_token", 1), ("next_token", 2)],
)
def test_no_tensor_is_quadratic_in_the_length(measured: Callable[..., Any], objective: str, ranks: int) -> None:
    short, long = (measured(objective, length, ranks) for length in (8192, 32768))
    assert long["largest"] <= 4 * short["largest"], long["shape"]
    assert long["largest"] < 32768**2 // 4, long["shape"]
    assert long["peak"] < 4 * GIB
    assert 0 < long["norm"] < float("inf")
