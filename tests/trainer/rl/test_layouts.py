"""Responses, and updates on the same responses, are equal in every layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TWO = ("grpo dense tp2 sp", "grpo dense pp2", "grpo dense cp2", "grpo dense dp2", "gspo dense tp2 sp",
       "gspo dense cp2", "once dense tp2 sp", "once dense pp2", "once dense cp2", "cispo dense cp2", "grpo moe ep2", "ppo dense tp2 sp",
       "ppo moe ep2", "online_dpo dense pp2", "online_dpo dense cp2")  # fmt: skip
FOUR = ("grpo dense tp2 sp cp2", "grpo dense pp2 vp2 dp2", "grpo moe tp2 sp pp2", "grpo moe cp2 dp2 ep2",
        "ppo dense pp2 dp2", "ppo dense cp2 tp2", "online_dpo dense tp2 sp dp2")  # fmt: skip


@pytest.fixture(scope="module")
def results(
    material: Path, tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., Any]
) -> Callable[[int], Any]:
    """Results of every layout by number of ranks, with one launch per number."""
    folder = tmp_path_factory.mktemp("layouts")

    def of(ranks: int) -> dict[str, Any]:
        if ranks > 1:
            of(1)  # writes the checkpoints too
        path = folder / f"{ranks}.json"
        if not path.exists():
            torchrun(ranks, Path(__file__).with_name("reinforcement_ranks.py"), material, path)
        return dict(json.loads(path.read_text()))

    return of


def check(name: str, actual: dict[str, Any], alone: dict[str, Any]) -> None:
    ours, expected = actual[name], alone[f"{' '.join(name.split()[:2])} one process"]
    assert ours["tokens"] == expected["tokens"]
    assert ours["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4)
    for step, (numbers, wanted) in enumerate(zip(ours["steps"], expected["steps"], strict=True)):
        assert numbers.keys() == wanted.keys()
        for key, value in wanted.items():
            assert numbers[key] == pytest.approx(value, rel=1e-4, abs=2e-5), (step, key)
    assert expected["steps"][-1]["grad_norm"] > 0


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_update_and_respond_like_one(results: Callable[[int], Any], name: str) -> None:
    check(name, results(2), results(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_update_and_respond_like_one(results: Callable[[int], Any], name: str) -> None:
    check(name, results(4), results(1))
