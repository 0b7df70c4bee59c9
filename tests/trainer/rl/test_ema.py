"""WARP's EMA reference is the moving average of the policy, also across interruptions; Pareto fronts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer import checkpoint, runtime
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    GrpoData,
    ParetoFrontJob,
    PythonReward,
    RolloutConfig,
    TrainJob,
)
from cupola_trainer.conversion.checkpoint_reader import StoredTensors
from cupola_trainer.jobs import pareto_front
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training.loop import begin, train

JobOf = Callable[..., TrainJob]
BATCH = BatchConfig(sequence_length=32, micro_batch_size=16, global_batch_size=16)


def grpo(material: Path, **changes: Any) -> GrpoData:
    settings: dict[str, Any] = {
        "rollout": RolloutConfig(prompts=4, samples_per_prompt=4, max_new_tokens=8, heldout_prompts=4),
        "rewards": (PythonReward(function="toy_rewards:spaces"),),
        "kl_coef": 0.1,
        "ema_rate": 0.25,
    }
    return GrpoData(conversations=material / "conversations", **(settings | changes))


def test_the_reference_follows_the_policy_step_by_step(job: JobOf, material: Path) -> None:
    under_way = begin(job("ema", grpo(material), batch=BATCH))
    under_way.start()
    objective: Any = under_way.objective
    policy = [parameter for chunk in under_way.trainee.chunks for parameter in chunk.parameters()]
    average = [parameter.detach().clone() for parameter in policy]
    for _ in range(3):
        under_way.step()
        average = [0.75 * old + 0.25 * new.detach() for old, new in zip(average, policy, strict=True)]
    reference = [parameter for chunk in objective.collector.reference for parameter in chunk.parameters()]
    for ours, expected in zip(reference, average, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(reference, policy, strict=True))
    kl = float((objective.current.sampling_logps - objective.current.arrays["ref_logps"]).sum())
    assert kl != 0  # the third rollout was compared with the average rather than the policy
    under_way.watchdog.stop()


def numbers(output: Path) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "grad_norm", "kl", "reward")
    return [
        tuple(line[name] for name in names)
        for line in read_metrics(output / "metrics.jsonl")
        if line["event"] == "step"
    ]


def test_an_interrupted_run_resumes_with_its_average_or_fails(job: JobOf, material: Path) -> None:
    settings: dict[str, Any] = {"steps": 5, "batch": BATCH, "checkpoint": CheckpointConfig(every=2)}
    twin, victim = (job(name, grpo(material), **settings) for name in ("twin", "victim"))
    for each in (twin, victim):
        each.output.mkdir()
    assert train(twin, lambda: False)
    looks = iter([False] * 3 + [True])
    assert not train(victim, lambda: next(looks))
    [saved] = (victim.output / "ema").glob("step_00000003")
    aside = saved.rename(victim.output / "elsewhere")
    with pytest.raises(CorruptArtifactError, match="step_00000003 is missing: the EMA reference saved with the policy"):
        train(victim, lambda: False)
    aside.rename(saved)
    assert train(victim, lambda: False)
    assert numbers(victim.output) == numbers(twin.output)
    ours, theirs = (StoredTensors(each.output / "ema" / "step_00000005") for each in (victim, twin))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_kl_is_zero_for_the_reference_and_positive_for_others(job: JobOf, material: Path) -> None:
    tuned = job("tuned", grpo(material), steps=4, batch=BATCH)
    tuned.output.mkdir()
    assert train(tuned, lambda: False)
    runtime.stop()
    checkpoints = {"beginning": material / "policy", "tuned": tuned.output / "checkpoints" / "step_00000004"}
    measuring = ParetoFrontJob(
        output=tuned.output / "pareto_front", reference=material / "policy", checkpoints=checkpoints, batch=BATCH,
        data=grpo(material, ema_rate=0.0),
    )  # fmt: skip
    measuring.output.mkdir()
    pareto_front.run(measuring)
    points = json.loads((measuring.output / "pareto_front.json").read_text())
    assert points["beginning"]["kl"] == pytest.approx(0, abs=1e-5)
    assert points["tuned"]["kl"] > 0.01
    assert points["tuned"]["reward"] != points["beginning"]["reward"]
    assert checkpoint.read_model(checkpoints["tuned"]) == checkpoint.read_model(material / "policy")


def test_an_ema_reference_without_a_kl_term_is_refused(material: Path) -> None:
    with pytest.raises(ValidationError, match=r"ema_rate=0\.01 with kl_coef=0: without a KL term"):
        grpo(material, ema_rate=0.01, kl_coef=0.0)
