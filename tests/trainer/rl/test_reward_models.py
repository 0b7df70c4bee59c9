"""Reward models are trained, averaged (WARM) and used to train a policy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.config import (
    BatchConfig,
    GrpoData,
    MergeJob,
    OptimizerConfig,
    PythonReward,
    RewardData,
    RewardModelReward,
    RolloutConfig,
    TrainJob,
)
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.jobs.merge import run as merge
from cupola_trainer.training.loop import begin, train

JobOf = Callable[..., TrainJob]


def preferences(folder: Path) -> Path:
    """Pairs in which the response with spaces is better."""
    rows = [
        {
            "id": f"p{n}", "messages": [{"role": "user", "content": f"Say {n}"}], "task": None,
            "chosen": "a b c d e"[: 3 + 2 * (n % 4)], "rejected": "abcde"[: 2 + n % 4], "chosen_score": 1.0,
            "rejected_score": 0.0,
        }
        for n in range(40)
    ]  # fmt: skip
    folder.mkdir()
    for split, part in (("train", rows[:32]), ("heldout", rows[32:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture
def reward_models(job: JobOf, tmp_path: Path) -> list[Path]:
    """Two reward models from one parent, with different seeds for data and head, and their average."""
    data = RewardData(preferences=preferences(tmp_path / "preferences"))
    made = []
    for seed in (1, 2):
        settings = {"steps": 16, "seed": seed, "optimizer": OptimizerConfig(lr=5e-3)}
        trained = job(f"reward{seed}", data, **settings)
        trained.output.mkdir()
        assert train(trained, lambda: False)
        metrics = json.loads((trained.output / "result.json").read_text())["metrics"]
        assert metrics["final_heldout_accuracy"] > 0.8
        made.append(trained.output / "checkpoints" / "step_00000016")
    runtime.stop()
    average = MergeJob(output=tmp_path / "average", checkpoints=tuple(made))
    average.output.mkdir()
    merge(average)
    runtime.stop()
    return [*made, average.output / "checkpoint"]


def test_a_policy_learns_from_an_average_of_reward_models(
    job: JobOf, material: Path, reward_models: list[Path]
) -> None:
    one, two, both = (StoredTensors(folder) for folder in reward_models)
    assert checkpoint.read_model(reward_models[2]).is_scalar
    assert set(both) == set(one)
    for key in both:
        np.testing.assert_allclose(both[key], (one[key] + two[key]) / 2, rtol=0, atol=1e-6)

    rewards = (RewardModelReward(checkpoint=reward_models[2]), PythonReward(function="toy_rewards:spaces", weight=0.0))
    rollout = RolloutConfig(prompts=4, samples_per_prompt=8, max_new_tokens=8, heldout_prompts=0)
    data = GrpoData(conversations=material / "conversations", rollout=rollout, rewards=rewards, kl_coef=0.02)
    settings = {"steps": 16, "batch": BatchConfig(sequence_length=32, micro_batch_size=16, global_batch_size=32)}
    under_way = begin(job("policy", data, **settings))
    under_way.start()
    logged: list[dict[str, float]] = []
    for _ in range(16):
        under_way.step()
        logged.append(dict(under_way.objective.current.metrics))  # type: ignore[attr-defined]
    under_way.watchdog.stop()
    first, last = (np.mean([line["reward"] for line in lines]) for lines in (logged[:4], logged[-4:]))
    assert last > first + 0.1
    assert all(line["reward"] == pytest.approx(line["reward_model"]) for line in logged)


def test_a_language_model_is_refused_as_a_reward_model(job: JobOf, material: Path) -> None:
    data = GrpoData(
        conversations=material / "conversations",
        rollout=RolloutConfig(prompts=2, samples_per_prompt=4, max_new_tokens=8),
        rewards=(RewardModelReward(checkpoint=material / "policy"),),
    )
    with pytest.raises(ConfigError, match="is a language model, not a reward model"):
        begin(job("judged", data))
