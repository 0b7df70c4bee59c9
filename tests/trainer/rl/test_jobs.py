"""GRPO, PPO and online DPO jobs learn, count what they drop, and resume bit for bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cupola_platform.errors import ConfigError, CorruptArtifactError
from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    GrpoData,
    OnlineDpoData,
    OptimizerConfig,
    PpoData,
    PythonReward,
    RolloutConfig,
    TrainJob,
)
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training.loop import begin, train

SPACES = (PythonReward(function="toy_rewards:spaces"),)
ROLLOUT = RolloutConfig(prompts=4, samples_per_prompt=8, epochs=2, max_new_tokens=8, heldout_prompts=4)
LEARNING: dict[str, Any] = {"batch": BatchConfig(sequence_length=32, micro_batch_size=16, global_batch_size=32)}
"""Two steps per rollout."""
JobOf = Callable[..., TrainJob]


def grpo(material: Path, **changes: Any) -> GrpoData:
    settings: dict[str, Any] = {"rollout": ROLLOUT, "rewards": SPACES, "kl_coef": 0.02}
    return GrpoData(conversations=material / "conversations", **(settings | changes))


def ppo(material: Path, **changes: Any) -> PpoData:
    settings: dict[str, Any] = {
        "rollout": ROLLOUT, "rewards": SPACES, "value_warmup_steps": 2, "value_optimizer": OptimizerConfig(lr=2e-3),
    }  # fmt: skip
    return PpoData(conversations=material / "conversations", **(settings | changes))


def online_dpo(material: Path, **changes: Any) -> OnlineDpoData:
    rollout = RolloutConfig(prompts=8, samples_per_prompt=4, max_new_tokens=8, heldout_prompts=4)
    return OnlineDpoData(conversations=material / "conversations", rollout=rollout, rewards=SPACES, **changes)


def run(job: TrainJob) -> list[dict[str, Any]]:
    """Train to the end and return the events."""
    job.output.mkdir(exist_ok=True)
    assert train(job, lambda: False)
    return read_metrics(job.output / "metrics.jsonl")


def steps(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "step"]


def rewards(events: list[dict[str, Any]], count: int) -> tuple[float, float]:
    """Mean rewards of the first and of the last steps."""
    values = [line["reward"] for line in steps(events)]
    return sum(values[:count]) / count, sum(values[-count:]) / count


def test_grpo_raises_the_reward(job: JobOf, material: Path) -> None:
    events = run(job("grpo", grpo(material), steps=24, **LEARNING))
    before, after = rewards(events, 4)
    assert after > before + 0.1
    lines = steps(events)
    assert ["heldout_reward" in event for event in events if event["event"] == "evaluate"] == [True, True]
    assert lines[0]["clip_fraction"] == 0  # the policy is still the one that generated the responses
    assert lines[0]["policy_kl"] == pytest.approx(0, abs=1e-9)
    assert max(line["clip_fraction"] for line in lines) > 0
    assert lines[-1]["kl"] > lines[0]["kl"] >= 0
    assert all(line["sampler_gap_p99"] < 1e-4 for line in lines)
    assert {"reward_std", "entropy", "length", "truncated", "rollout_tokens_per_second", "tokens_per_second"} <= set(
        lines[0]
    )
    assert lines[0]["reward"] == lines[1]["reward"] != lines[2]["reward"]  # two steps per rollout


def test_online_dpo_raises_the_reward_and_the_margin(job: JobOf, material: Path) -> None:
    batch = BatchConfig(sequence_length=32, micro_batch_size=8, global_batch_size=8)
    events = run(job("dpo", online_dpo(material), steps=16, batch=batch))
    before, after = rewards(events, 3)
    assert after > before + 0.03
    assert steps(events)[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert steps(events)[-1]["margin"] > 0.05


def test_ppo_learns_values_first_and_then_raises_the_reward(job: JobOf, material: Path, tokens_folder: Path) -> None:
    events = run(
        job(
            "ppo",
            ppo(material, kl_target=1.0, kl_horizon=500.0, pretraining=tokens_folder, pretraining_coef=0.05),
            steps=24,
            **LEARNING,
        )
    )
    lines = steps(events)
    assert [line["grad_norm"] for line in lines[:2]] == [0.0, 0.0]
    assert lines[2]["grad_norm"] > 0
    assert lines[1]["value_loss"] < lines[0]["value_loss"]  # on the same responses
    assert lines[0]["pretraining_loss"] == pytest.approx(np.log(512), rel=0.2)
    assert lines[-1]["pretraining_loss"] < lines[0]["pretraining_loss"]
    assert lines[0]["kl_coef"] == 0.04
    assert lines[2]["kl_coef"] != 0.04
    before, after = rewards(events, 4)
    assert after > before + 0.05


def test_a_rollout_without_any_reward_ends_the_job(job: JobOf, material: Path) -> None:
    data = grpo(material, rewards=(PythonReward(function="toy_rewards:failing"),))
    with pytest.raises(ConfigError, match=r"none of its 32 responses has a reward \(reward_raised 32\)"):
        train(job("failing", data), lambda: False)


def test_responses_near_the_longest_lose_reward_in_training_only(job: JobOf, material: Path) -> None:
    data = grpo(material, rollout=replace(ROLLOUT, length_buffer=4))
    under_way = begin(job("late", data))
    under_way.start()
    under_way.step()
    under_way.watchdog.stop()
    objective: Any = under_way.objective
    rollout = objective.current
    late = -np.clip(rollout.lengths - (ROLLOUT.max_new_tokens - 4), 0, None) / 4
    assert late.min() == -1
    assert rollout.metrics["reward_length"] == pytest.approx(late.mean())
    assert rollout.metrics["reward"] == pytest.approx(rollout.metrics["reward_spaces"] + late.mean())
    assert objective.measure()["reward"] >= 0  # the share of spaces


def test_a_buffer_longer_than_a_response_is_refused(material: Path) -> None:
    with pytest.raises(ConfigError, match=r"length_buffer=9 is more than max_new_tokens=8"):
        replace(ROLLOUT, max_new_tokens=8, length_buffer=9).check(BatchConfig(sequence_length=32), pairs=False)
    with pytest.raises(ValueError, match="CISPO weighs tokens"):
        grpo(material, ratio="sequence", clipping="weight")


def test_responses_without_a_reward_are_counted_and_left_out(job: JobOf, material: Path) -> None:
    data = grpo(material, rewards=(PythonReward(function="toy_rewards:moody"),))
    under_way = begin(job("moody", data))
    under_way.start()
    under_way.step()
    under_way.watchdog.stop()
    rollout = under_way.objective.current  # type: ignore[attr-defined]
    missing = np.isnan(rollout.arrays["rewards"])
    assert 0 < missing.sum() < len(rollout)
    dropped = {name: count for name, count in rollout.metrics.items() if name.startswith("dropped_")}
    assert dropped["dropped_reward_raised"] + dropped["dropped_reward_not_finite"] == missing.sum()
    assert not rollout.arrays["trained_on"][missing].any()
    assert (rollout.arrays["advantages"][missing] == 0).all()


def test_truncated_responses_are_masked_if_configured(job: JobOf, material: Path) -> None:
    rollout = RolloutConfig(prompts=4, samples_per_prompt=4, max_new_tokens=2, truncated="mask")
    under_way = begin(job("truncated", grpo(material, rollout=rollout)))
    under_way.start()
    under_way.step()
    under_way.watchdog.stop()
    collected = under_way.objective.current  # type: ignore[attr-defined]
    truncated = ~collected.finished
    assert truncated.sum() > 8
    assert collected.metrics["dropped_truncated"] == truncated.sum()
    assert not collected.arrays["trained_on"][truncated].any()


def test_prompts_with_the_highest_reward_variance_come_first(job: JobOf, material: Path) -> None:
    rollout = RolloutConfig(prompts=4, samples_per_prompt=4, max_new_tokens=8, order="reward_variance")
    ordered = job("ordered", grpo(material, rollout=rollout))
    ordered.output.mkdir()
    under_way = begin(ordered)
    order = under_way.objective.order  # type: ignore[attr-defined]
    ranked = [order.variances[order.place(index)] for index in range(order.size)]
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[0] > ranked[-1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rollout": RolloutConfig(samples_per_prompt=1)}, "samples_per_prompt=1"),
        ({"rollout": RolloutConfig(prompts=3, samples_per_prompt=3, max_new_tokens=8)},
        r"9 responses, not a multiple of global_batch_size=8"), ({"rollout": RolloutConfig(max_new_tokens=32)},
        "max_new_tokens=32 leaves no room"), ({"rewards": (PythonReward(function="toy_rewards:nowhere"),)},
        "toy_rewards:nowhere cannot be loaded"), ({"rewards": SPACES + SPACES}, "spaces is listed 2 times"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused_in_one_line(
    job: JobOf, material: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run(job("refused", grpo(material, **changes)))


KINDS = {"grpo": grpo, "ppo": ppo, "online_dpo": online_dpo}


def stored(job: TrainJob) -> dict[str, torch.Tensor]:
    """All weights and moments of the last checkpoint, including the value model's."""
    tensors: dict[str, torch.Tensor] = {}
    for folder in ("checkpoints", "value"):
        for newest in sorted((job.output / folder).glob("step_*"))[-1:]:
            state = StoredState(newest / "state", newest / "optimizer")
            tensors |= {f"{folder} {key}": state.read(key) for key in state.boxes}
    return tensors


def numbers(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = (
        "step",
        "loss",
        "grad_norm",
        "lr",
        "consumed_samples",
        "reward",
        "kl_coef",
        "value_loss",
        "value_grad_norm",
    )
    return [tuple(line.get(name) for name in names) for line in steps(events)]


@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        pytest.param("ppo", 3, id="ppo within a rollout"),
        *(
            pytest.param(kind, stop, id=f"{kind} {where}", marks=pytest.mark.slow)
            for kind, stop, where in (
                ("grpo", 3, "within a rollout"),
                ("online_dpo", 3, "within a rollout"),
                ("grpo", 8, "between rollouts"),
                ("ppo", 8, "between rollouts"),
                ("online_dpo", 8, "between rollouts"),
            )
        ),
    ],
)
def test_an_interrupted_job_resumes_bit_for_bit(job: JobOf, material: Path, kind: str, stop: int) -> None:
    data = KINDS[kind](material)
    settings: dict[str, Any] = {"steps": 11, "checkpoint": CheckpointConfig(every=5)}
    if kind == "online_dpo":
        settings["batch"] = BatchConfig(sequence_length=32, micro_batch_size=1, global_batch_size=2)
    twin, victim = (job(name, data, **settings) for name in ("twin", "victim"))
    expected = run(twin)
    victim.output.mkdir()
    looks = iter([False] * stop + [True])
    assert not train(victim, lambda: next(looks))
    assert numbers(run(victim)) == numbers(expected)
    ours, theirs = stored(victim), stored(twin)
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("value ") for key in ours) == (kind == "ppo")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_job_whose_rollout_is_missing_fails_instead_of_collecting_another(job: JobOf, material: Path) -> None:
    victim = job("victim", grpo(material))
    victim.output.mkdir()
    looks = iter([False, False, True])
    assert not train(victim, lambda: next(looks))
    for path in (victim.output / "rollouts").iterdir():
        path.unlink()
    with pytest.raises(CorruptArtifactError, match=r"rollout_00000000\.npz cannot be read"):
        train(victim, lambda: False)


def test_a_job_whose_value_model_is_missing_fails_instead_of_restarting_it(job: JobOf, material: Path) -> None:
    victim = job("victim", ppo(material))
    victim.output.mkdir()
    looks = iter([False, False, True])
    assert not train(victim, lambda: next(looks))
    [saved] = (victim.output / "value").glob("step_*")
    assert json.loads((saved / "optimizer" / "optimizer.json").read_text())["step"] == 2
    saved.rename(saved.with_name("elsewhere"))
    with pytest.raises(CorruptArtifactError, match="step_00000002 is missing: the value model"):
        train(victim, lambda: False)
