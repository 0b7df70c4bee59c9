"""An objective from another package is found by its entry point and trained like ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.config import BatchConfig, ModelConfig, NextTokenData, OptimizerConfig, TrainJob, write_job
from cupola_trainer.objectives.inputs import ObjectiveInputs
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training.objective_table import build_objective

TOY = '''
"""Next-token loss on every second token."""

from cupola_trainer.objectives import next_token


class Toy(next_token.NextTokenObjective):
    name = "toy"

    def collate(self, samples):
        batch = super().collate(samples)
        batch["loss_mask"][:, 1::2] = 0
        return batch

    def loss(self, output, batch):
        total, count, sums = super().loss(output, batch)
        return total, count, {**sums, "tokens_trained_on": count}


def build(inputs):
    return Toy(inputs.data, batch=inputs.batch, seed=inputs.seed)
'''
BATCH = BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The installed package's folder."""
    folder = tmp_path / "packages"
    (folder / "toy-1.0.dist-info").mkdir(parents=True)
    (folder / "toy_objective.py").write_text(TOY)
    (folder / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (folder / "toy-1.0.dist-info" / "entry_points.txt").write_text("[cupola.objectives]\ntoy = toy_objective\n")
    return folder


def test_an_objective_from_another_package_trains(package: Path, tmp_path: Path, tokens_folder: Path) -> None:
    model = ModelConfig(
        vocab_size=320, hidden_size=32, num_layers=1, num_attention_heads=2, num_query_groups=2, ffn_hidden_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    job = TrainJob(
        output=tmp_path / "job", model=model, steps=3, batch=BATCH, optimizer=OptimizerConfig(lr=1e-2),
        data=NextTokenData(tokens=tokens_folder), objective="toy",
    )  # fmt: skip
    job.output.mkdir()
    write_job(job, job.output / "job.json")
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "cupola_trainer", str(job.output / "job.json")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [line for line in read_metrics(job.output / "metrics.jsonl") if line["event"] == "step"]
    assert [line["tokens_trained_on"] for line in steps] == [1.0, 1.0, 1.0]
    assert steps[-1]["loss"] < steps[0]["loss"]
    training = json.loads((job.output / "checkpoints" / "step_00000003" / "training.json").read_text())
    assert training["objective"] == "toy"
    assert training["data"]["objective"] == "toy"


def test_an_unknown_objective_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    inputs = ObjectiveInputs(name="grop", data=None, batch=BATCH, steps=1, seed=0, output=tmp_path)
    with pytest.raises(ConfigError) as raised:
        build_objective(inputs)
    assert str(raised.value) == "There is no objective 'grop'. Did you mean 'grpo'?"
