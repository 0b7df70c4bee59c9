"""Replay: how much pretraining text is mixed into fine-tuning, in which rows, and how it is reported."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cupola_trainer.config import BatchConfig, ModelConfig, OptimizerConfig, SftData, TrainJob, write_job
from cupola_trainer.data.batches import Batch
from cupola_trainer.models.attention.texts import Texts
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.replay import ReplayObjective, rows_with_text, text_rows
from cupola_trainer.objectives.sft import SftObjective

LENGTH = 32


class Text(Objective):
    """Sequences of the token 1000 + index; three are held out."""

    name = "text"

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        tokens = np.full(LENGTH, 1000 + index)
        return {"tokens": tokens, "labels": tokens, "loss_mask": np.ones(LENGTH, dtype=np.float32)}

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return self.sample(index) if index < 3 else None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        raise NotImplementedError

    def loss(self, output: torch.Tensor, batch: Batch) -> Any:
        raise NotImplementedError


@pytest.fixture
def sft(tmp_path: Path, chat_tokenizer: Any) -> SftObjective:
    """Six conversations, one per row; twelve held out."""

    def rows(count: int) -> str:
        conversations = [
            [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "One."}] for n in range(count)
        ]
        return "".join(json.dumps({"messages": messages}) + "\n" for messages in conversations)

    (tmp_path / "train.jsonl").write_text(rows(6))
    (tmp_path / "heldout.jsonl").write_text(rows(12))
    data = SftData(conversations=tmp_path, pack=False)
    return SftObjective(data, tokenizer=chat_tokenizer, sequence_length=LENGTH, seed=0)


def test_the_share_is_spread_evenly_and_every_conversation_is_seen_once_per_epoch(sft: SftObjective) -> None:
    replay = ReplayObjective(sft, Text(), share=0.25)
    assert replay.epoch == rows_with_text(6, 0.25) == 8
    seen = [replay.sample(index) for index in range(16)]
    assert [int(sample["pretraining"][0]) for sample in seen] == [0, 0, 0, 1] * 4
    assert [int(sample["tokens"][0]) for sample in seen if sample["pretraining"][0]] == [1000, 1001, 1002, 1003]
    conversations = [sample["tokens"].tobytes() for sample in seen if not sample["pretraining"][0]]
    assert conversations == [sft.sample(index)["tokens"].tobytes() for index in range(12)]
    assert [text_rows(rows, 0.4) for rows in (1, 2, 3, 5, 10, 1000)] == [0, 0, 1, 2, 4, 400]


def test_all_tokens_of_text_but_only_responses_of_conversations_are_trained_on(sft: SftObjective) -> None:
    batch = ReplayObjective(sft, Text(), share=0.5).collate(
        [ReplayObjective(sft, Text(), share=0.5).sample(index) for index in range(2)]
    )
    assert batch["loss_mask"][1].tolist() == [1.0] * LENGTH
    assert 0 < batch["loss_mask"][0].sum() < LENGTH / 2
    assert torch.equal(batch["pretraining"], torch.stack([torch.zeros(LENGTH), torch.ones(LENGTH)]))


def test_a_packed_row_of_pretraining_text_is_one_text(sft: SftObjective) -> None:
    sft.packed = True
    replay = ReplayObjective(sft, Text(), share=0.5)
    batch = replay.collate([replay.sample(1)])
    assert Texts.of(batch["segments"]).lengths == ((LENGTH,),)


def test_the_loss_is_the_mean_over_all_trained_tokens_and_both_parts_are_reported(sft: SftObjective) -> None:
    replay = ReplayObjective(sft, Text(), share=0.5)
    batch = replay.collate([replay.sample(0), replay.sample(1)])
    output = torch.stack([torch.full((LENGTH,), 2.0), torch.full((LENGTH,), 5.0)])
    total, count, sums = replay.loss(output, batch)
    responses = float(batch["loss_mask"][0].sum())
    assert (float(total), float(count)) == (2 * responses + 5 * LENGTH, responses + LENGTH)
    means = replay.report({name: float(value / count) for name, value in {"loss": total, **sums}.items()})
    assert means == pytest.approx(
        {"loss": float(total / count), "response_loss": 2.0, "pretraining_loss": 5.0}, rel=1e-5
    )
    only = replay.report({"loss": 2.0, "pretraining": 0.0, "pretraining_tokens": 0.0})
    assert only == {"loss": 2.0, "response_loss": 2.0}


def test_held_out_rows_are_mixed_the_same_way_until_either_runs_out(sft: SftObjective) -> None:
    replay = ReplayObjective(sft, Text(), share=0.5)
    kinds = [None if (row := replay.heldout(index)) is None else int(row["pretraining"][0]) for index in range(9)]
    assert kinds == [0, 1, 0, 1, 0, 1, 0, None, 0]  # three sequences of text are held out


def test_a_job_learns_both_and_reports_them_separately(
    sft: SftObjective, tmp_path: Path, tokens_folder: Path, chat_tokenizer_folder: Path, torchrun: Callable[..., Any]
) -> None:
    job = TrainJob(
        output=tmp_path / "job",
        model=ModelConfig(
            vocab_size=1024, hidden_size=32, num_layers=2, num_attention_heads=2, num_query_groups=1,
            ffn_hidden_size=64, max_position_embeddings=LENGTH,
        ),
        tokenizer=chat_tokenizer_folder,
        steps=0,
        optimizer=OptimizerConfig(lr=1e-2),
        batch=BatchConfig(sequence_length=LENGTH, micro_batch_size=2, global_batch_size=4),
        data=SftData(conversations=tmp_path, pack=False, epochs=10, pretraining=tokens_folder, pretraining_share=0.25),
    )  # fmt: skip
    job.output.mkdir()
    write_job(job, job.output / "job.json")
    torchrun(1, "-m", "cupola_trainer", job.output / "job.json")
    events = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    assert events[0]["steps"] == 20  # ten epochs of six conversations; a quarter of all rows is text
    before, after = (event for event in events if event["event"] == "evaluate")
    for name in ("heldout_loss", "heldout_response_loss", "heldout_pretraining_loss"):
        assert before[name] == pytest.approx(np.log(1024), rel=0.1)
    assert after["heldout_response_loss"] < 3.0
    assert after["heldout_pretraining_loss"] < before["heldout_pretraining_loss"] - 1
