"""The training loop apart from its numbers: bad gradients, mistakes, restarts, cached reference losses."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cupola_platform.errors import CorruptArtifactError
from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint import Progress
from cupola_trainer.config import (
    BatchConfig,
    FaultConfig,
    ModelConfig,
    NextTokenData,
    OptimizerConfig,
    TrainJob,
    write_job,
)
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.data.batches import Batch
from cupola_trainer.forward import outputs
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.inputs import computed_once
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training import loop
from cupola_trainer.training.faults import Rollbacks
from cupola_trainer.training.run import BeginAgain, Run

MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=2,
    num_query_groups=2,
    ffn_hidden_size=64,
    max_position_embeddings=32,
)


def job_in(output: Path, tokens: Path) -> TrainJob:
    return TrainJob(
        output=output,
        model=MODEL,
        steps=6,
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4),
        optimizer=OptimizerConfig(lr=1e-2),
        data=NextTokenData(tokens=tokens),
    )


class Exploding(Objective):
    """Counting up, with infinite losses at the given steps (of 4 samples each, counted from 1)."""

    name = "exploding"

    def __init__(self, bad_steps: set[int]) -> None:
        self.bad_steps = bad_steps

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return {"tokens": np.arange(33) + index, "bad": np.array(index // 4 + 1 in self.bad_steps)}

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        tokens = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))
        bad = torch.from_numpy(np.stack([sample["bad"] for sample in samples]))
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(len(samples), 32),
            "position_ids": torch.arange(32).expand(len(samples), -1).contiguous(),
            "factor": torch.where(bad, torch.inf, 1.0),
        }

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        return (output * batch["factor"][:, None]).sum(), self.count(batch), {}


def run_of(job: TrainJob, objective: Exploding) -> Run:
    runtime.start(job.layout, job.seed)
    trainee = optim.build(models.build(MODEL, job.layout), job.layout, job.optimizer, job.steps)
    unwatched = job.but(faults=FaultConfig(hang_seconds=0))  # these tests run single steps and never finish the job
    run = Run(unwatched, MODEL, None, objective, trainee, Progress())
    run.start()
    return run


def weights_of(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.trainee.chunks[0].parameters()]


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_logged(tmp_path: Path) -> None:
    run = run_of(job_in(tmp_path, tmp_path), Exploding({2}))
    run.step()
    before = weights_of(run)
    run.step()
    assert all(torch.equal(x, y) for x, y in zip(weights_of(run), before, strict=True))
    run.step()
    assert not all(torch.equal(x, y) for x, y in zip(weights_of(run), before, strict=True))
    assert all(torch.isfinite(weight).all() for weight in weights_of(run))
    steps = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["event"] == "step"]
    assert [line.get("skipped", False) for line in steps] == [False, True, False]
    assert steps[1]["grad_norm"] is None


def test_three_bad_gradients_in_a_row_without_a_checkpoint_restart_the_job(tmp_path: Path) -> None:
    run = run_of(job_in(tmp_path, tmp_path), Exploding({2, 3, 4}))
    for _ in range(3):
        run.step()
    with pytest.raises(BeginAgain):
        run.step()
    [rollback] = Rollbacks(tmp_path / "rollbacks.json").done
    assert (rollback.from_step, rollback.first_sample, rollback.end_sample) == (4, 0, 16)


def test_results_of_the_initial_weights_are_computed_once_per_job(tmp_path: Path) -> None:
    run = run_of(job_in(tmp_path, tmp_path), exploding := Exploding(set()))
    batch = exploding.collate([exploding.sample(0), exploding.sample(1)])

    def losses() -> dict[str, np.ndarray]:
        return {"losses": outputs.token_losses(run.trainee.chunks, batch).numpy()}

    first = computed_once(tmp_path / "reference.npz", losses)["losses"]
    run.step()
    assert first.shape == (2, 32)
    assert (losses()["losses"] != first).any()
    assert (computed_once(tmp_path / "reference.npz", losses)["losses"] == first).all()


def test_a_flipped_byte_is_refused_by_name_before_anything_is_read(tmp_path: Path) -> None:
    run = run_of(job_in(tmp_path, tmp_path), Exploding(set()))
    run.step()
    run.save()
    run.autosave.wait()
    folder = tmp_path / "checkpoints" / "step_00000001"
    assert checkpoint.read_model(folder) == MODEL
    victim = folder / "state" / "rank_00000.bin"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"state/rank_00000\.bin"):
        checkpoint.load_weights(folder, run.trainee.chunks)


def trainer(job_file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cupola_trainer", str(job_file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def test_a_mistake_exits_with_status_2_one_line_and_error_json(tmp_path: Path) -> None:
    job = job_in(tmp_path / "output", tmp_path / "nowhere")
    write_job(job, tmp_path / "job.json")
    done = trainer(tmp_path / "job.json")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    error = json.loads((job.output / "error.json").read_text())
    assert error["type"] == "SourceError"
    assert f"{tmp_path / 'nowhere'} is not a tokens artifact" in error["message"]


def test_one_process_needs_no_launcher_and_a_complete_job_does_not_rerun(tmp_path: Path, tokens_folder: Path) -> None:
    job = job_in(tmp_path, tokens_folder)
    write_job(job, tmp_path / "job.json")
    assert (done := trainer(tmp_path / "job.json")).returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"]["parameters"] == parameter_count(MODEL)
    assert result["metrics"]["final_heldout_loss"] < result["metrics"]["initial_heldout_loss"]
    written = (tmp_path / "metrics.jsonl").read_bytes()
    assert trainer(tmp_path / "job.json").returncode == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == written


def test_another_job_starts_from_a_checkpoints_weights(tmp_path: Path, tokens_folder: Path) -> None:
    first = job_in(tmp_path / "first", tokens_folder)
    assert loop.train(first, lambda: False)
    second = first.but(output=tmp_path / "second", model=None, parent=first.output / "checkpoints/step_00000006")
    assert loop.train(second, lambda: False)
    ends = [json.loads((job.output / "result.json").read_text())["metrics"] for job in (first, second)]
    assert ends[1]["initial_heldout_loss"] == pytest.approx(ends[0]["final_heldout_loss"], rel=1e-6)


def test_a_job_terminated_before_its_first_step_reports_it_and_saves_nothing(
    tmp_path: Path, tokens_folder: Path
) -> None:
    assert not loop.train(job_in(tmp_path, tokens_folder), lambda: True)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1] | {"time": 0} == {
        "event": "end", "time": 0, "step": 0, "status": "preempted",
    }  # fmt: skip
    assert not (tmp_path / "checkpoints").exists()


def adam_reference(steps: int) -> list[Any]:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7, 5))
    adamw = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
    values = []
    for step in range(steps):
        weight.grad = torch.full_like(weight, float(step + 1)) * weight.detach().sign()
        adamw.step()
        values.append(weight.detach().clone())
    return values


def test_fused_adam_equals_pytorchs_adamw() -> None:
    from cupola_trainer.megatron.adam import FusedAdam

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7, 5))
    adam = FusedAdam([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step, expected in enumerate(adam_reference(5)):
        weight.grad = torch.full_like(weight, float(step + 1)) * weight.detach().sign()
        adam.step()
        assert torch.allclose(weight, expected, rtol=1e-6, atol=1e-7)
    assert adam.param_groups[0]["step"] == 5
