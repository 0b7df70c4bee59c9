"""FP8 and optimizer states that cannot work are refused before anything starts, with a suggestion."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cupola_platform.errors import ConfigError
from cupola_trainer.config import (
    BatchConfig,
    Fp8Config,
    LayoutConfig,
    LoraConfig,
    ModelConfig,
    MoEConfig,
    NextTokenData,
    OptimizerConfig,
    TrainJob,
)
from cupola_trainer.config.precision_rules import validate_precision

DENSE = ModelConfig(
    vocab_size=512,
    hidden_size=192,
    num_layers=6,
    num_attention_heads=6,
    num_query_groups=2,
    ffn_hidden_size=256,
    max_position_embeddings=64,
)
MOE = replace(DENSE, moe=MoEConfig(num_experts=4, expert_ffn_hidden_size=64, shared_expert_ffn_hidden_size=64))
BATCH = BatchConfig(sequence_length=64, micro_batch_size=2, global_batch_size=8)


def job(fp8: dict[str, Any], batch: BatchConfig = BATCH, **settings: Any) -> TrainJob:
    data = NextTokenData(tokens=Path("tokens"))
    everything: dict[str, Any] = {"precision": "fp8", "steps": 1, "seed": 0, "output": Path("out"), **settings}
    return TrainJob(fp8=Fp8Config(**fp8), batch=batch, data=data, **everything)


@pytest.mark.parametrize(
    ("model", "fp8", "layout", "line"),
    [
        (DENSE, {"recipe": "delayed", "first_layers": 1}, {}, "delayed with 1 first and 0 last layers in bf16: it scales all"),
        (MOE, {"recipe": "delayed"}, {"dp": 2, "ep": 2}, "delayed with ep=2: ranks would share the scales of different experts"),
        (DENSE, {"first_layers": 4}, {"pp": 2}, "fp8.first_layers=4 is more than the 3 layers of a pipeline stage. Use 3 or"),
        (DENSE, {"first_layers": 3, "last_layers": 3}, {}, "leave none of num_layers=6 in FP8"),
        (DENSE, {}, {"tp": 24}, "num_attention_heads x head_dim=192 / 24 ranks = 8 is not a multiple of 16, .* Try 384"),
        (replace(DENSE, ffn_hidden_size=264), {}, {}, "ffn_hidden_size=264 is not a multiple of 16, .* Try 272, or prec"),
        (replace(DENSE, ffn_hidden_size=272), {"recipe": "mxfp8"}, {}, "ffn_hidden_size=272 is not a multiple of 32, .* Try 288"),
        (MOE, {}, {"tp": 2, "sp": True, "etp": 8}, "expert_ffn_hidden_size=64 / 8 ranks = 8 is not a multiple of 16"),
        (DENSE, {"recipe": "block"}, {"tp": 2, "sp": True}, "hidden_size=192 is not a multiple of 128, .*block needs. Try 256"),
    ],
)  # fmt: skip
def test_fp8_that_the_model_or_layout_does_not_allow_is_refused(
    model: ModelConfig, fp8: dict[str, Any], layout: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        validate_precision(model, job(fp8), LayoutConfig(**layout))


def test_a_micro_batch_that_fp8_cannot_multiply_is_refused() -> None:
    odd = replace(BATCH, sequence_length=62)
    line = r"micro_batch_size x sequence_length=124 is not a multiple of 16, which fp8.recipe=current needs. Try 128"
    with pytest.raises(ConfigError, match=line):
        validate_precision(DENSE, job({}, odd), LayoutConfig())
    with pytest.raises(ConfigError, match=r"=128 / 16 ranks = 8 is not a multiple of 16"):
        validate_precision(DENSE, job({}), LayoutConfig(cp=4, tp=4, sp=True))


@pytest.mark.parametrize("recipe", ["delayed", "current", "block", "mxfp8"])
@pytest.mark.parametrize("model", [DENSE, MOE])
def test_what_fits_is_allowed(model: ModelConfig, recipe: str) -> None:
    validate_precision(model, job({"recipe": recipe}), LayoutConfig())
    validate_precision(model, job({"recipe": recipe}), LayoutConfig(cp=2, pp=2))


def test_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="precision=fp8 with lora: adapters train torch's layers"):
        validate_precision(DENSE, job({}, lora=LoraConfig()), LayoutConfig())


def test_settings_of_fp8_without_fp8_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"fp8 is set, but precision=bf16. Set precision: fp8, or leave fp8 out"):
        job({"recipe": "block"}, precision="bf16")


def test_a_second_moment_that_would_never_shrink_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"beta2=0.999 with states=bf16: .* Use beta2=0.99 or less, or states"):
        OptimizerConfig(states="bf16", beta2=0.999)
    assert OptimizerConfig(states="bf16").beta2 == 0.95


def test_the_checks_import_no_torch() -> None:
    code = "import cupola_trainer.config.precision_rules, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
