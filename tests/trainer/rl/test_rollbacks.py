"""Non-finite gradients before the first checkpoint restart everything from step 0, without the samples that caused them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cupola_trainer.checkpoint.storage import StoredState
from cupola_trainer.config import (
    BatchConfig,
    FaultConfig,
    GrpoData,
    OptimizerConfig,
    PpoData,
    PythonReward,
    RolloutConfig,
    TrainJob,
)
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training.faults import Rollback, Rollbacks
from cupola_trainer.training.loop import begin, train

ROLLOUT = RolloutConfig(prompts=4, samples_per_prompt=8, max_new_tokens=8)
BATCH = BatchConfig(sequence_length=32, micro_batch_size=16, global_batch_size=32)
"""One step per rollout."""
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"kl_coef": 0.1, "ema_rate": 0.25},
    "ppo": {"value_warmup_steps": 0, "value_optimizer": OptimizerConfig(lr=2e-3)},
}


def weights(output: Path, kind: str) -> dict[str, torch.Tensor]:
    """The policy, its optimizer, and the EMA reference or the value model with its optimizer."""
    tensors: dict[str, torch.Tensor] = {}
    for folder in ("checkpoints", "ema" if kind == "grpo" else "value"):
        saved = output / folder / "step_00000003"
        state = StoredState(saved / "state", saved / "optimizer")
        tensors |= {f"{folder} {key}": state.read(key) for key in state.boxes}
    return tensors


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_ema_reference_and_value_model_restart_with_the_policy(
    kind: str, job: Callable[..., TrainJob], material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy_rewards  # type: ignore[import-not-found]

    make = GrpoData if kind == "grpo" else PpoData
    data = make(
        conversations=material / "conversations", rollout=ROLLOUT,
        rewards=(PythonReward(function="toy_rewards:overwhelming"),), **SETTINGS[kind],
    )  # fmt: skip
    victim, twin = (
        job(name, data, steps=3, batch=BATCH, faults=FaultConfig(bad_gradients=2)) for name in ("victim", "twin")
    )
    for each in (victim, twin):
        each.output.mkdir()
    objective: Any = begin(victim).objective
    contents = [objective.prompts[objective.order.place(place)].row["messages"][-1]["content"] for place in range(24)]
    monkeypatch.setattr(toy_rewards, "OVERWHELMING", set(contents[4:12]))  # those of steps 2 and 3
    assert train(victim, lambda: False)
    Rollbacks(twin.output / "rollbacks.json").add(Rollback(3, 0, 0, 96, "known before"))
    assert train(twin, lambda: False)

    lines = read_metrics(victim.output / "metrics.jsonl")
    [rollback] = [line for line in lines if line["event"] == "rollback"]
    assert (rollback["step"], rollback["from_step"], rollback["skipped_samples"]) == (0, 3, [0, 96])
    assert [line["consumed_samples"] for line in lines if line["event"] == "step"] == [128, 160, 192]
    ours, theirs = weights(victim.output, kind), weights(twin.output, kind)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
