"""Distillation: the gradient against torch's, live and stored teachers, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.config import (
    BatchConfig,
    DistillationData,
    LayoutConfig,
    ModelConfig,
    OptimizerConfig,
    SftData,
    TeachJob,
    TrainJob,
)
from cupola_trainer.forward.schedule import forward
from cupola_trainer.jobs import teach
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.batches import read_batches, training_samples
from cupola_trainer.objectives.distillation import LiveTeacher
from cupola_trainer.objectives.sft import SftObjective
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training import loop

ONE = LayoutConfig()
STUDENT = ModelConfig(
    vocab_size=1024, hidden_size=32, num_layers=2, num_attention_heads=2, num_query_groups=1, ffn_hidden_size=64,
    max_position_embeddings=64, rope_theta=10_000.0,
)  # fmt: skip
TEACHER = replace(STUDENT, hidden_size=48, num_layers=1, head_dim=16, tie_embeddings=False, init_std=0.2)
BATCH = BatchConfig(sequence_length=48, micro_batch_size=2, global_batch_size=4)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    runtime.start(ONE, seed=0)
    checkpoint.save(
        folder, models.build(TEACHER, ONE, seed=3), model=TEACHER, layout=ONE, step=0, consumed_samples=0, seed=3,
        objective="sft", tokenizer=chat_tokenizer_folder,
    )  # fmt: skip
    runtime.stop()
    return folder


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversations")

    def row(number: int) -> str:
        turns = [
            {"role": "user", "content": f"Is {number} a number?"},
            {"role": "assistant", "content": f"yes, {number}"},
        ]
        return json.dumps({"messages": turns}) + "\n"

    for name, numbers in (("train", range(24)), ("heldout", range(30, 34))):
        (folder / f"{name}.jsonl").write_text("".join(map(row, numbers)), encoding="utf-8")
    return folder


def job_of(output: Path, conversations: Path, tokenizer: Path, **data: Any) -> TrainJob:
    return TrainJob(
        output=output, seed=1, model=STUDENT, tokenizer=tokenizer, steps=8, batch=BATCH,
        optimizer=OptimizerConfig(lr=5e-3), data=DistillationData(conversations=conversations, **data),
        evaluate_batches=1,
    )  # fmt: skip


def losses(job: TrainJob) -> list[float]:
    assert loop.train(job, lambda: False)
    runtime.stop()
    return [line["loss"] for line in read_metrics(job.output / "metrics.jsonl") if line["event"] == "step"]


def test_the_gradient_equals_torchs(teacher: Path, conversations: Path, chat_tokenizer: Any) -> None:
    runtime.start(ONE, seed=0)
    data = DistillationData(teacher=teacher, conversations=conversations, temperature=1.7)
    text = SftObjective(SftData(conversations=conversations), tokenizer=chat_tokenizer, sequence_length=48, seed=0)
    objective = LiveTeacher(data, text, student=STUDENT, layout=ONE)
    chunks = models.build(STUDENT, ONE, seed=5)
    plain, [theirs] = models.build(STUDENT, ONE, seed=5)[0], models.build(TEACHER, ONE, seed=3)
    trainee = optim.build(chunks, ONE, OptimizerConfig(), 1)
    batches = read_batches(objective, training_samples(objective, BATCH, 0))
    means = passes.train(trainee.chunks, objective, batches)

    total, count = torch.zeros(()), 0.0
    for batch in batches:
        with torch.no_grad():
            taught = (forward(batch, theirs, "logits") / 1.7).log_softmax(-1)
        trained = (forward(batch, plain, "logits") / 1.7).log_softmax(-1)
        kl = F.kl_div(trained, taught, reduction="none", log_target=True).sum(-1)
        total = total + (kl * batch["loss_mask"]).sum()
        count += float(batch["loss_mask"].sum())
    (total / count).backward()
    assert means["loss"] == pytest.approx(float(total) / count, rel=1e-5)
    ours = dict(trainee.chunks[0].module.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours[name].main_grad, parameter.grad, rtol=1e-4, atol=1e-6)
    runtime.stop()


def test_a_stored_teacher_trains_like_a_live_one(
    teacher: Path, conversations: Path, chat_tokenizer_folder: Path, tmp_path: Path
) -> None:
    live = job_of(tmp_path / "live", conversations, chat_tokenizer_folder, teacher=teacher)
    expected = losses(live)
    assert expected[-1] < expected[0] - 0.2

    def ask(name: str, top_k: int) -> Path:
        job = TeachJob(
            output=tmp_path / name, seed=1, parent=teacher, steps=8, batch=BATCH, top_k=top_k,
            data=live.data.text,  # type: ignore[union-attr]
        )  # fmt: skip
        (job.output / "teacher").mkdir(parents=True)
        (job.output / "teacher" / "tokens-1.npy").touch()  # left by a killed start with two ranks
        teach.run(job)
        runtime.stop()
        return Path(job.output / "teacher")

    everything = ask("everything", 1024)
    assert {path.name for path in everything.iterdir()} == {"index.json", "logprobs-0.npy", "tokens-0.npy"}
    stored = job_of(tmp_path / "stored", conversations, chat_tokenizer_folder, stored=everything)
    assert losses(stored) == pytest.approx(expected, rel=1e-4)
    few = job_of(tmp_path / "few", conversations, chat_tokenizer_folder, stored=ask("eight", 8))
    actual = losses(few)
    assert actual[-1] < actual[0] < expected[0]  # fewer outcomes to distinguish

    other = stored.but(output=tmp_path / "other", seed=2, batch=replace(BATCH, sequence_length=40))
    with pytest.raises(ConfigError, match="does not cover a sample"):
        losses(other)
    runtime.stop()
    warm = job_of(tmp_path / "warm", conversations, chat_tokenizer_folder, stored=everything, temperature=2.0)
    with pytest.raises(ConfigError, match=r"written at temperature=1.0, but this job has temperature=2.0"):
        losses(warm)
    runtime.stop()


def test_a_teacher_with_another_vocabulary_is_refused(
    teacher: Path, conversations: Path, chat_tokenizer_folder: Path, tmp_path: Path
) -> None:
    job = job_of(tmp_path / "job", conversations, chat_tokenizer_folder, teacher=teacher)
    with pytest.raises(ConfigError, match="has vocab_size=1024; the student has vocab_size=1088"):
        losses(job.but(model=replace(STUDENT, vocab_size=1088)))
    runtime.stop()
    with pytest.raises(ValueError, match="either `tokens` or `conversations`"):
        DistillationData(teacher=teacher)
    with pytest.raises(ValueError, match="either a live `teacher` or a `stored` one"):
        DistillationData(tokens=teacher)
