"""Sequences of several lengths: equal tokens per step, the configured shares, the same in every layout and after a
kill."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint
from cupola_trainer.config import (
    BatchConfig,
    CheckpointConfig,
    CopyingConfig,
    LayoutConfig,
    LengthPhase,
    LengthSchedule,
    ModelConfig,
    NextTokenData,
    OptimizerConfig,
    PositionChange,
    TrainJob,
    write_job,
)
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.positions import DualChunk
from cupola_trainer.data.pretraining.lengths import Lengths, cut
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training import loop

PHASES = (LengthPhase(sequence_length=32), LengthPhase(sequence_length=64, from_step=3))
SCHEDULE = LengthSchedule(phases=PHASES, shortest=16)
BATCH = BatchConfig(sequence_length=64, micro_batch_size=1, global_batch_size=4)
MODEL = ModelConfig(
    vocab_size=320, hidden_size=32, num_layers=2, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=64,
    max_position_embeddings=16, rope_theta=1e4,
)  # fmt: skip


def test_four_in_ten_sequences_are_full_and_the_others_halves_and_quarters() -> None:
    schedule = LengthSchedule(phases=(LengthPhase(sequence_length=1024),), shortest=256)
    lengths = Lengths(schedule, BatchConfig(sequence_length=1024, micro_batch_size=2, global_batch_size=8), seed=1)
    sequences: Counter[int] = Counter()
    for sample in range(5_000):
        assert lengths.of(sample) == lengths.of(sample - sample % 2)  # one length per micro-batch
        sequences[lengths.of(sample)] += 1024 // lengths.of(sample)
    assert {length: round(count / sequences.total(), 1) for length, count in sequences.items()} == {
        1024: 0.4, 512: 0.3, 256: 0.3,
    }  # fmt: skip


def test_phases_start_at_their_steps() -> None:
    lengths = Lengths(SCHEDULE, BATCH, seed=1)
    assert SCHEDULE.mean_length(0) == pytest.approx((0.4 * 32 * 32 + 0.6 * 16 * 16) / (0.4 * 32 + 0.6 * 16))
    assert {lengths.of(sample) for sample in range(12)} == {32, 16}
    assert {lengths.of(sample) for sample in range(12, 60)} == {64, 32, 16}


def test_a_split_row_has_several_sequences_that_start_at_position_zero() -> None:
    row = {name: torch.arange(8).view(1, 8) for name in ("tokens", "labels", "loss_mask", "position_ids")}
    batch = cut(row, 4)
    assert batch["tokens"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((LengthPhase(sequence_length=32, from_step=1),), r"begin at steps \[1\]: the first must begin at 0"),
        ((PHASES[1], PHASES[0]), r"begin at steps \[3, 0\]"),
    ],
)
def test_phases_out_of_order_are_refused(phases: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LengthSchedule(phases=phases)


def test_lengths_that_do_not_divide_rows_or_ranks_are_refused() -> None:
    uneven = LengthSchedule(phases=(LengthPhase(sequence_length=48),), shortest=16)
    model = replace(MODEL, max_position_embeddings=64)
    with pytest.raises(ConfigError, match=r"a phase of 48 tokens does not divide sequence_length=64.* Try (32|64)"):
        validate_layout(model, LayoutConfig(), BATCH, lengths=uneven)
    odd = LengthSchedule(phases=PHASES, shortest=8)
    with pytest.raises(ConfigError, match="sequences of 8 tokens cannot be split over cp=4 and tp=2 ranks"):
        validate_layout(model, LayoutConfig(cp=4, tp=2), BATCH, lengths=odd)


def job_in(output: Path, tokens: Path, **changes: Any) -> TrainJob:
    settings: dict[str, Any] = {
        "output": output, "seed": 3, "model": replace(MODEL, max_position_embeddings=64), "steps": 6, "batch": BATCH,
        "optimizer": OptimizerConfig(lr=2e-3), "data": NextTokenData(tokens=tokens, lengths=SCHEDULE, copying=CopyingConfig(share=0.5, shortest=4)),
        "checkpoint": CheckpointConfig(every=2), "evaluate_batches": 1,
    }  # fmt: skip
    return TrainJob(**settings | changes)


def steps_of(output: Path) -> list[tuple[float, float]]:
    lines = [line for line in read_metrics(output / "metrics.jsonl") if line["event"] == "step"]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_an_extended_checkpoint_resumes_bit_for_bit_after_an_interruption(tmp_path: Path, tokens_folder: Path) -> None:
    short = BatchConfig(sequence_length=16, micro_batch_size=1, global_batch_size=4)
    first = job_in(
        tmp_path / "short", tokens_folder, model=MODEL, batch=short, data=NextTokenData(tokens=tokens_folder)
    )
    assert loop.train(first, lambda: False)
    parent = tmp_path / "short" / "checkpoints" / "step_00000006"
    chunks = DualChunk(chunk_size=16, local_window=4)
    longer = {"model": None, "parent": parent, "positions": PositionChange(rope_theta=1e6, dual_chunk=chunks)}
    assert loop.train(job_in(tmp_path / "whole", tokens_folder, **longer), lambda: False)
    calls = iter([False] * 4 + [True])
    assert not loop.train(job_in(tmp_path / "ended", tokens_folder, **longer), lambda: next(calls))
    assert len(steps_of(tmp_path / "ended")) == 4
    assert loop.train(job_in(tmp_path / "ended", tokens_folder, **longer), lambda: False)
    assert steps_of(tmp_path / "ended") == steps_of(tmp_path / "whole")
    model = checkpoint.read_model(tmp_path / "whole" / "checkpoints" / "step_00000006")
    assert model == replace(MODEL, max_position_embeddings=64, rope_theta=1e6, dual_chunk=chunks)


def test_lengths_beyond_the_position_method_are_refused(tmp_path: Path, tokens_folder: Path) -> None:
    short = BatchConfig(sequence_length=16, micro_batch_size=1, global_batch_size=4)
    first = job_in(tmp_path / "short", tokens_folder, model=MODEL, batch=short, data=NextTokenData(tokens=tokens_folder),
                   steps=1)  # fmt: skip
    assert loop.train(first, lambda: False)
    yarn = {"type": "yarn", "factor": 2, "original_max_position_embeddings": 16}
    change = PositionChange(rope_scaling=yarn)  # type: ignore[arg-type]
    parent = tmp_path / "short" / "checkpoints" / "step_00000001"
    with pytest.raises(ConfigError, match=r"max_position_embeddings=64 is beyond what yarn allows: .* = 32\."):
        loop.begin(job_in(tmp_path / "long", tokens_folder, model=None, parent=parent, positions=change))
    with pytest.raises(ConfigError, match="sequence_length=64 is more than max_position_embeddings=16"):
        loop.begin(job_in(tmp_path / "long", tokens_folder, model=None, parent=parent))


LAYOUTS = {
    "tp=2 sp": LayoutConfig(tp=2, sp=True),
    "pp=2": LayoutConfig(pp=2),
    "cp=2": LayoutConfig(cp=2),
    "dp=2": LayoutConfig(dp=2),
    "pp=2 vp=2": LayoutConfig(pp=2, vp=2),
}


@pytest.mark.slow
def test_losses_and_gradient_norms_are_equal_in_every_layout(
    tmp_path: Path, tokens_folder: Path, torchrun: Callable[..., Any]
) -> None:
    model = replace(MODEL, num_layers=4, max_position_embeddings=64)
    assert loop.train(job_in(tmp_path / "one", tokens_folder, model=model), lambda: False)
    jobs = [job_in(tmp_path / name, tokens_folder, model=model, layout=layout) for name, layout in LAYOUTS.items()]
    for number, job in enumerate(jobs):
        write_job(job, tmp_path / f"job{number}.json")
    torchrun(2, Path(__file__).with_name("length_ranks.py"), *sorted(tmp_path.glob("job*.json")))
    for job in jobs:
        for found, wanted in zip(steps_of(job.output), steps_of(tmp_path / "one"), strict=True):
            assert found == pytest.approx(wanted, rel=1e-4), job.output.name
