"""SIGKILL of GRPO, PPO and online DPO jobs during rollouts, updates and saves: the final artifact equals an
uninterrupted twin's bit for bit."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    write_job,
)
from cupola_trainer.reporting.metrics import read_metrics

STEPS = 40
STEPS_A_ROLLOUT = 8
KILLS = ("rollout", "update", "save", "rollout", "save")


def start(job: TrainJob, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    job.output.mkdir(parents=True, exist_ok=True)
    write_job(job, job.output / "job.json")
    with (job.output / "log").open("ab") as log:
        command = [sys.executable, "-m", "cupola_trainer", str(job.output / "job.json")]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def kill(job: TrainJob, process: "subprocess.Popen[bytes]", where: str, delay: float) -> bool:
    """Kill the process there, after its first step; False if the job completed first."""
    metrics, folders = job.output / "metrics.jsonl", [job.output / name for name in ("checkpoints", "value")]
    started_at = metrics.stat().st_ino if metrics.exists() else 0
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_ino != started_at:
            lines = read_metrics(metrics)
            began = max((line["step"] for line in lines if line["event"] == "start"), default=STEPS)
            step = max((line["step"] for line in lines if line["event"] == "step"), default=0)
            between = step % STEPS_A_ROLLOUT == 0  # the next thing is a rollout
            saves = any(path for folder in folders for path in folder.glob(".step_*.partial"))
            here = saves if where == "save" else not saves and between == (where == "rollout")
            if step > began and here:
                time.sleep(delay)
                process.kill()
                return process.wait() != 0
        time.sleep(0.002)
    return False


def numbers(output: Path) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "grad_norm", "reward", "kl_coef", "value_loss", "heldout_reward")
    events = [line for line in read_metrics(output / "metrics.jsonl") if line["event"] in ("step", "evaluate")]
    return [tuple(line.get(name) for name in names) for line in events]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", ["grpo", "ppo", "online_dpo"])
def test_five_kills_leave_no_trace(
    kind: str,
    material: Path,
    tmp_path: Path,
    launcher: Callable[[int], tuple[list[str], dict[str, str]]],
    changed_files: Callable[[Path, Path], list[str]],
    result_folder: Callable[[Path], Path],
) -> None:
    shared: dict[str, Any] = {
        "conversations": material / "conversations",
        "rollout": RolloutConfig(prompts=8, samples_per_prompt=4, epochs=2, max_new_tokens=12),
        "rewards": (PythonReward(function="toy_rewards:spaces"),),
    }
    kinds: dict[str, Callable[[], GrpoData | PpoData | OnlineDpoData]] = {
        "grpo": lambda: GrpoData(**shared),
        "online_dpo": lambda: OnlineDpoData(**shared),
        "ppo": lambda: PpoData(
            **shared, value_warmup_steps=5, value_optimizer=OptimizerConfig(lr=1e-3), kl_target=1.0, kl_horizon=200.0
        ),
    }
    victim = TrainJob(
        output=tmp_path / "victim", parent=material / "policy", data=kinds[kind](), steps=STEPS, seed=3,
        optimizer=OptimizerConfig(lr=3e-3), checkpoint=CheckpointConfig(every=3), evaluate_every=10,
        batch=BatchConfig(sequence_length=48, micro_batch_size=4, global_batch_size=8),
    )  # fmt: skip
    twin = victim.but(output=tmp_path / "twin")
    settings = launcher(1)[1]
    path = os.pathsep.join([str(Path(__file__).parent), settings.get("PYTHONPATH", "")])
    environment = {**settings, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    assert start(twin, environment).wait(600) == 0, (twin.output / "log").read_text()[-3000:]
    draw = random.Random(4)
    for where in KILLS:
        assert kill(victim, start(victim, environment), where, draw.uniform(0, 0.03)), where
    assert start(victim, environment).wait(600) == 0, (victim.output / "log").read_text()[-3000:]
    assert numbers(victim.output) == numbers(twin.output)
    assert changed_files(result_folder(victim.output), result_folder(twin.output)) == []
    if kind == "ppo":
        ours, theirs = (max((job.output / "value").glob("step_*")) for job in (victim, twin))
        assert changed_files(ours, theirs) == []
    assert json.loads((victim.output / "result.json").read_text())["metrics"]["final_heldout_reward"] is not None
