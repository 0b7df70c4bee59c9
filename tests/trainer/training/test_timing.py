"""What a job reports about its speed: the parts of a step, MFU, the experts' load, traces."""

import json
from pathlib import Path
from typing import Any

import pytest

from cupola_trainer.config import (
    BatchConfig,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    NextTokenData,
    TrainJob,
    write_job,
)
from cupola_trainer.reporting.metrics import read_metrics
from cupola_trainer.training.timing import flops_per_token

MODEL = ModelConfig(
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=64,
    vocab_size=320,
    max_position_embeddings=64,
    moe=MoEConfig(num_experts=4, expert_ffn_hidden_size=32),
)
PARTS = ("data", "forward", "backward", "communication", "optimizer")


def test_a_step_reports_its_parts_mfu_and_the_experts_load(torchrun: Any, tokens_folder: Path, tmp_path: Path) -> None:
    job = TrainJob(
        output=tmp_path / "job",
        model=MODEL,
        steps=6,
        log_every=2,
        layout=LayoutConfig(dp=2, ep=2),
        batch=BatchConfig(sequence_length=64, micro_batch_size=2, global_batch_size=8),
        data=NextTokenData(tokens=tokens_folder),
        dry=True,
        profile=(3, 4),
    )
    job.output.mkdir()
    write_job(job, job.output / "job.json")
    torchrun(2, "-m", "cupola_trainer", job.output / "job.json")
    lines = [line for line in read_metrics(job.output / "metrics.jsonl") if line["event"] == "step"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        parts = [line[f"seconds_{part}"] for part in PARTS]
        assert all(seconds > 0 for seconds in parts)
        assert sum(parts) <= 8 * 64 / line["tokens_per_second"] * 1.05
        assert 0 < line["mfu"] < 1
        assert all(1 <= line[f"expert_load_layer_{layer}"] <= 4 for layer in (1, 2))
    for rank in (0, 1):
        trace = json.loads((job.output / f"profile/steps-3-4-rank-{rank}.json").read_text())
        names = {event.get("name") for event in trace["traceEvents"]}
        assert {"step 3", "step 4", "aten::mm"} <= names
        assert "step 5" not in names


def test_flops_per_token_use_the_head_size_rather_than_the_hidden_size() -> None:
    """As in Gemma 2: 4 heads of size 16 with a hidden size of 32."""
    model = ModelConfig(**{**vars(MODEL), "moe": None, "head_dim": 16})
    projections = 32 * 64 + 2 * 32 * 32 + 64 * 32  # queries, keys and values of 2 groups, output
    scores_and_sums = 2 * 4 * 16 * 32  # over half of the 64 tokens
    ffn = 3 * 32 * 64
    assert flops_per_token(model, 64) == 6 * (2 * (projections + ffn + scores_and_sums) + 32 * 320) == 258_048


@pytest.mark.parametrize("moe", [None, MODEL.moe])
def test_flops_per_token_agree_with_torchs_count(moe: MoEConfig | None) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if moe is not None:
        dense = flops_per_token(MODEL, 64) - 6 * 2 * (3 * 32 * 2 * 32 + 32 * 4)
        assert dense == 6 * (2 * (32 * 32 + 32 * 32 + 2 * 32 * 16 + 32 * 64) + 32 * 320)
        return
    model = ModelConfig(**{**vars(MODEL), "moe": None})
    reference = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            vocab_size=320,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    )
    ids = torch.randint(320, (1, 64))
    with FlopCounterMode(display=False) as counter:
        reference(input_ids=ids, labels=ids).loss.backward()
    whole_attention = 6 * 2 * 32 * 64  # causal attention counts half of this
    rotary = 0.02  # transformers computes rotary angles as a matrix product
    assert counter.get_total_flops() / 64 == pytest.approx(flops_per_token(model, 64) + whole_attention, rel=rotary)
