"""DAPO's dynamic sampling: prompts whose responses are all rewarded alike are replaced by further ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer.rl.test_jobs import numbers, run, steps, stored

from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    GrpoData,
    OnlineDpoData,
    PpoSettings,
    PythonReward,
    RolloutConfig,
    TrainJob,
)
from cupola_trainer.rl.collector import groups_differ, rows_kept
from cupola_trainer.rl.rewards import combine
from cupola_trainer.training.loop import train

NAN = float("nan")
JobOf = Callable[..., TrainJob]
BATCH = BatchConfig(sequence_length=32, micro_batch_size=16, global_batch_size=16)
"""One step a rollout."""


def data_of(kind: Any, material: Path, **rollout: Any) -> Any:
    settings: dict[str, Any] = {"prompts": 8, "samples_per_prompt": 2, "max_new_tokens": 8, "heldout_prompts": 0}
    rewards = (PythonReward(function="toy_rewards:spaced"),)
    return kind(conversations=material / "conversations", rewards=rewards, rollout=RolloutConfig(**settings | rollout))


def test_groups_that_differ_come_first_and_in_their_order() -> None:
    rewards = np.array([1, 1, 0, 1, NAN, 1, NAN, NAN, 0, 0, 2, 3, 5, NAN, 0.5, 0.25], dtype=np.float64)
    assert groups_differ(rewards, 2).tolist() == [False, True, False, False, False, True, False, True]
    assert rows_kept(rewards, 2, 2).tolist() == [2, 3, 10, 11]
    assert rows_kept(rewards, 2, 4).tolist() == [0, 1, 2, 3, 10, 11, 14, 15]  # filled with the first that are alike
    assert rows_kept(rewards, 2, 8).tolist() == list(range(16))


def test_groups_alike_are_replaced_by_the_next_prompts(job: JobOf, material: Path) -> None:
    once, often = (
        steps(run(job(f"draws-{draws}", data_of(GrpoData, material, max_draws=draws), steps=3, batch=BATCH)))
        for draws in (1, 20)
    )
    assert "prompts_drawn" not in once[0]
    assert once[0]["groups_alike"] > 0
    assert [line["groups_alike"] for line in often] == [0, 0, 0]
    assert all(line["prompts_drawn"] > 8 for line in often)
    assert often[0]["grad_norm"] > 0


def test_rewards_are_those_of_all_responses_drawn(job: JobOf, material: Path, monkeypatch: Any) -> None:
    seen: list[np.ndarray] = []

    def watched(*arguments: Any) -> Any:
        scores = combine(*arguments)
        seen.append(scores.total)
        return scores

    monkeypatch.setattr("cupola_trainer.rl.collector.combine", watched)
    [line] = steps(run(job("all", data_of(GrpoData, material, max_draws=20), steps=1, batch=BATCH)))
    assert len(seen) > 1
    assert line["reward"] == pytest.approx(np.concatenate(seen).mean())
    assert line["prompts_drawn"] == len(np.concatenate(seen)) / 2


def test_pairs_of_equals_are_replaced_too(job: JobOf, material: Path) -> None:
    batch = BatchConfig(sequence_length=32, micro_batch_size=8, global_batch_size=8)
    lines = steps(run(job("pairs", data_of(OnlineDpoData, material, max_draws=20), steps=2, batch=batch)))
    assert [line["dropped_equal"] for line in lines] == [0, 0]


def test_what_is_alike_after_the_last_draw_stays(job: JobOf, material: Path) -> None:
    data = data_of(GrpoData, material, max_draws=2)
    data = data.but(rewards=(PythonReward(function="toy_rewards:equal"),))
    [line] = steps(run(job("equal", data, steps=1, batch=BATCH)))
    assert (line["prompts_drawn"], line["groups_alike"], line["grad_norm"]) == (16, 1, 0)


@pytest.mark.parametrize("stop", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_an_interrupted_job_draws_the_same_prompts(job: JobOf, material: Path, stop: int) -> None:
    settings: dict[str, Any] = {
        "steps": 8,
        "checkpoint": CheckpointConfig(every=2),
        "batch": BatchConfig(sequence_length=32, micro_batch_size=4, global_batch_size=8),  # two steps a rollout
    }
    twin, victim = (job(name, data_of(GrpoData, material, max_draws=20), **settings) for name in ("twin", "victim"))
    expected = run(twin)
    victim.output.mkdir()
    looks = iter([False] * stop + [True])
    assert not train(victim, lambda: next(looks))
    resumed = run(victim)
    assert numbers(resumed) == numbers(expected)
    drawn = [line["prompts_drawn"] for line in steps(expected)]
    assert [line["prompts_drawn"] for line in steps(resumed)] == drawn
    assert max(drawn) > 8
    ours, theirs = stored(victim), stored(twin)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_ppo_keeps_all_groups() -> None:
    with pytest.raises(ValueError, match=r"max_draws=2: PPO learns from responses that all have"):
        PpoSettings(rollout=RolloutConfig(max_draws=2))
