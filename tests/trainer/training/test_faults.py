"""Non-finite gradients and loss spikes roll back to the last good checkpoint and skip the samples that caused them."""

import json
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cupola_platform.errors import StageFailedError
from cupola_trainer import models, optim, runtime
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    FaultConfig,
    ModelConfig,
    NextTokenData,
    OptimizerConfig,
    TrainJob,
)
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives.base import Objective
from cupola_trainer.reporting.metrics import MetricsWriter, read_metrics
from cupola_trainer.training.faults import Monitor, Rollback, Rollbacks
from cupola_trainer.training.resume import resume
from cupola_trainer.training.run import Run

MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    num_layers=1,
    num_attention_heads=2,
    num_query_groups=2,
    ffn_hidden_size=64,
    max_position_embeddings=32,
)


class Exploding(Objective):
    """Counting up, with losses multiplied by `factor` for some samples. Four samples a step."""

    name = "exploding"

    def __init__(self, bad: range, factor: float) -> None:
        self.bad, self.factor = bad, factor
        self.read: list[int] = []

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        self.read.append(index)
        return {"tokens": np.arange(33) + index, "factor": np.array(self.factor if index in self.bad else 1.0)}

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        tokens = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(len(samples), 32),
            "position_ids": torch.arange(32).expand(len(samples), -1).contiguous(),
            "factor": torch.from_numpy(np.stack([sample["factor"] for sample in samples])).float(),
        }

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        return (output * batch["factor"][:, None]).sum(), self.count(batch), {}


def job_in(output: Path, **faults: float) -> TrainJob:
    return TrainJob(
        output=output,
        model=MODEL,
        steps=12,
        batch=BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4),
        optimizer=OptimizerConfig(lr=1e-3),
        data=NextTokenData(tokens=output),
        checkpoint=CheckpointConfig(every=2, keep=5),
        faults=FaultConfig(**faults),  # type: ignore[arg-type]
    )


def start(job: TrainJob, objective: Exploding) -> Run:
    runtime.start(job.layout, job.seed)
    trainee = optim.build(models.build(MODEL, job.layout), job.layout, job.optimizer, job.steps)
    progress = resume(job.output / "checkpoints", trainee)
    run = Run(job, MODEL, None, objective, trainee, progress)
    run.start()
    return run


def train(run: Run, until: int) -> list[torch.Tensor]:
    while run.progress.step < until:
        run.step()
    run.autosave.wait()
    run.watchdog.stop()
    return [parameter.detach().clone() for parameter in run.trainee.chunks[0].parameters()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


INFINITE = Exploding(range(16, 28), float("inf"))
"""Samples of steps 5, 6 and 7."""


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[torch.Tensor]]:
    """A job in which the gradients of steps 5 to 7 are not finite, and its weights after step 9."""
    output = tmp_path_factory.mktemp("rolled_back")
    return output, train(start(job_in(output), INFINITE), 9)


def test_three_bad_gradients_roll_the_weights_back_and_skip_the_samples(
    rolled_back: tuple[Path, list[torch.Tensor]],
) -> None:
    lines = read_metrics(rolled_back[0] / "metrics.jsonl")
    rollback = next(line for line in lines if line["event"] == "rollback")
    assert rollback | {"time": 0} == {
        "event": "rollback", "time": 0, "step": 4, "from_step": 7, "skipped_samples": [16, 28], "rollbacks": 1,
        "reason": "the gradient was not finite for 3 steps in a row",
    }  # fmt: skip
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert [line["consumed_samples"] for line in steps] == [4, 8, 12, 16, 32, 36, 40, 44, 48]
    assert not any(line.get("skipped") for line in steps)
    samples = read_metrics(rolled_back[0] / "samples" / "dp_00000.jsonl")
    assert [line["ranges"] for line in samples][3:5] == [[[12, 14], [14, 16]], [[28, 30], [30, 32]]]


def test_the_weights_equal_those_of_a_run_without_the_skipped_samples(
    rolled_back: tuple[Path, list[torch.Tensor]], tmp_path: Path
) -> None:
    Rollbacks(tmp_path / "rollbacks.json").add(Rollback(7, 4, 16, 28, "known before"))
    assert equal(train(start(job_in(tmp_path), INFINITE), 9), rolled_back[1])


def test_a_job_killed_after_or_before_the_rollback_ends_with_the_same_weights(
    rolled_back: tuple[Path, list[torch.Tensor]], tmp_path: Path
) -> None:
    train(start(job_in(tmp_path), INFINITE), 6)  # killed after two bad gradients, recorded in a checkpoint
    run = start(job_in(tmp_path), INFINITE)
    assert run.progress.step == 6
    train(run, 5)
    while run.progress.step != 5:  # rolls back to 4, then one step
        run.step()
    resumed = start(job_in(tmp_path), INFINITE)  # killed again, resumes at 4 with the window in rollbacks.json
    assert resumed.progress.step == 4
    assert equal(train(resumed, 9), rolled_back[1])


def test_a_job_preempted_just_before_the_fault_ends_like_an_uninterrupted_one(
    tmp_path: Path, changed_files: Callable[[Path, Path], list[str]]
) -> None:
    twin, victim = job_in(tmp_path / "twin"), job_in(tmp_path / "victim")
    bad = Exploding(range(20, 32), float("inf"))  # steps 6, 7 and 8
    train(start(twin, bad), 12)
    run = start(victim, bad)
    train(run, 5)
    run.preempt()  # saves a healthy step 5, which an uninterrupted job does not
    run = start(victim, bad)
    assert run.progress.step == 5
    train(run, 12)
    assert [entry["to_step"] for entry in json.loads((victim.output / "rollbacks.json").read_text())] == [4]
    ours, theirs = (sorted((job.output / "checkpoints").glob("step_*")) for job in (victim, twin))
    assert [folder.name for folder in ours] == [folder.name for folder in theirs]
    assert changed_files(ours[-1], theirs[-1]) == []


def test_a_loss_spike_rolls_back_too(tmp_path: Path) -> None:
    run = start(job_in(tmp_path, spike_factor=3.0, spike_window=4), Exploding(range(24, 28), 50.0))
    train(run, 8)
    rollback = next(line for line in read_metrics(tmp_path / "metrics.jsonl") if line["event"] == "rollback")
    assert (rollback["from_step"], rollback["step"], rollback["skipped_samples"]) == (7, 6, [24, 28])
    assert rollback["reason"].startswith("the loss jumped to 2")
    assert "more than 3 times the median" in rollback["reason"]


def test_rollbacks_are_limited_and_the_second_goes_further_back(tmp_path: Path) -> None:
    run = start(job_in(tmp_path, bad_gradients=1, max_rollbacks=2), Exploding(range(20, 10_000), float("inf")))
    with pytest.raises(StageFailedError, match=r"not finite for 1 steps in a row, after 2 rollbacks .*lr=0\.001"):
        train(run, 12)
    assert [entry["to_step"] for entry in json.loads((tmp_path / "rollbacks.json").read_text())] == [4, 2]
    run.watchdog.stop()


def test_the_monitors_state_survives_a_checkpoint() -> None:
    config = FaultConfig(spike_factor=2.0, spike_window=3)
    monitor = Monitor(config)
    assert [monitor.judge(loss, moved=True) for loss in (3.0, 9.0, 1.0)] == [None, None, None]
    assert monitor.judge(float("nan"), moved=False) is None
    resumed = Monitor(config, json.loads(json.dumps(monitor.state())))
    assert resumed.bad_in_a_row == 1
    assert resumed.judge(6.0, moved=True) is None
    assert resumed.judge(12.1, moved=True) == "the loss jumped to 12.1, more than 2 times the median 6"


def test_adjacent_windows_are_skipped_together(tmp_path: Path) -> None:
    rollbacks = Rollbacks(tmp_path / "rollbacks.json")
    rollbacks.add(Rollback(7, 4, 16, 28, "first"))
    rollbacks.add(Rollback(9, 2, 8, 16, "second"))
    assert [Rollbacks(rollbacks.path).next_sample(sample) for sample in (4, 8, 12, 16, 28)] == [4, 28, 28, 28, 28]


def test_a_full_disk_loses_metrics_but_not_the_job(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.open(0)
    writer.write("step", step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))  # in the middle of the second line
    try:
        writer.write("step", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.write("step", step=3)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert writer.lost == 1


def test_by_default_only_gradients_are_checked() -> None:
    assert Monitor(FaultConfig()).judge(1e9, moved=True) is None
    assert replace(FaultConfig(), spike_factor=2.0).spike_window == 32
