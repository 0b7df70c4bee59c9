"""Layouts that cannot work are refused before anything starts, with a suggestion."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, MoEConfig
from cupola_trainer.config.layout_rules import validate_layout

DENSE = ModelConfig(
    vocab_size=512,
    hidden_size=192,
    num_layers=6,
    num_attention_heads=6,
    num_query_groups=2,
    ffn_hidden_size=256,
    max_position_embeddings=64,
)
MOE = replace(DENSE, moe=MoEConfig(num_experts=6, expert_ffn_hidden_size=64, shared_expert_ffn_hidden_size=64))
BATCH = BatchConfig(sequence_length=64, micro_batch_size=2, global_batch_size=8)


@pytest.mark.parametrize(
    ("model", "layout", "line"),
    [
        (DENSE, {"tp": 4}, "num_attention_heads=6 is not a multiple of tp=4. Try tp=1 or 2 or 3, or num_attention_heads=8."),
        (DENSE, {"tp": 3}, "num_query_groups=2 is not a multiple of tp=3. Try tp=1 or 2, or num_query_groups=3."),
        (DENSE, {"pp": 4}, "num_layers=6 is not a multiple of pp=4. Try pp=1 or 2 or 3, or num_layers=8."),
        (DENSE, {"pp": 2, "vp": 2}, "num_layers=6 is not a multiple of pp x vp=4. Try pp x vp=1 or 2 or 3, or num_layers=8."),
        (DENSE, {"vp": 2}, "vp=2 with pp=1: the interleaved schedule needs a pipeline. Use pp=2 or leave vp out."),
        (DENSE, {"sp": True}, "sp=true with tp=1: sequence parallelism shards over the tensor-parallel group. Use sp=false."),
        (DENSE, {"ep": 2, "dp": 2}, "ep=2, but the model is dense. Use ep=1."),
        (MOE, {"tp": 2}, "tp=2 without sp: a mixture of experts under tensor parallelism needs sp=true."),
        (MOE, {"ep": 4, "dp": 4}, "moe.num_experts=6 is not a multiple of ep=4. Try ep=1 or 2 or 3, or moe.num_experts=8."),
        (MOE, {"ep": 2}, "tp x cp x dp=1 is not a multiple of ep x etp=2. Try ep x etp=1, or tp x cp x dp=2."),
        (MOE, {"dp": 2, "ep": 2, "etp": 2}, "tp x cp x dp=2 is not a multiple of ep x etp=4. Try ep x etp=1 or 2, or"),
        (DENSE, {"dp": 3}, r"global_batch_size=8 is not a multiple of .* = 2 x 3 = 6. Try global_batch_size=12."),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_fit_the_model_is_refused(model: ModelConfig, layout: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        validate_layout(model, LayoutConfig(**layout), BATCH)


def test_a_sequence_that_context_parallelism_cannot_split_is_refused() -> None:
    batch = replace(BATCH, sequence_length=62)
    with pytest.raises(
        ConfigError, match=r"sequence_length=62 is not a multiple of 2 x cp=4\. .* or sequence_length=64"
    ):
        validate_layout(DENSE, LayoutConfig(cp=2), batch)


def test_a_sequence_longer_than_the_model_allows_is_refused() -> None:
    with pytest.raises(ConfigError, match="sequence_length=128 is more than max_position_embeddings=64"):
        validate_layout(DENSE, LayoutConfig(), replace(BATCH, sequence_length=128))


def test_an_interleaved_schedule_needs_a_multiple_of_pp_micro_batches() -> None:
    model, batch = replace(DENSE, num_layers=4), replace(BATCH, global_batch_size=6)
    with pytest.raises(ConfigError, match=r"3 micro-batches are not a multiple of pp=2, .* Try global_batch_size=8"):
        validate_layout(model, LayoutConfig(pp=2, vp=2), batch)


def test_more_ranks_than_the_launcher_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tp x pp x cp x dp = 2 x 1 x 1 x 2 = 4 ranks, but there are 2\. Launch 4"):
        validate_layout(DENSE, LayoutConfig(tp=2, dp=2), BATCH, ranks=2)


def test_layouts_that_work_pass() -> None:
    layouts: tuple[dict[str, Any], ...] = (
        {"tp": 2, "sp": True, "ep": 2},
        {"dp": 2, "ep": 2},
        {"pp": 2},
        {"pp": 3, "cp": 2},
        {"tp": 2, "sp": True, "dp": 2, "ep": 2, "etp": 2},
    )
    for layout in layouts:
        validate_layout(MOE, LayoutConfig(**layout), BATCH)


def test_the_rules_and_the_job_schema_load_no_torch() -> None:
    code = (
        "import sys, cupola_trainer.config.layout_rules, cupola_trainer.config, cupola_trainer.reporting.metrics; "
        "print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
