"""A separate engine generates with the current training weights, from any layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cupola_platform.errors import ConfigError
from cupola_trainer.config import RolloutConfig
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.generation.engine import engine_of

MODEL = ModelConfig(
    vocab_size=64, hidden_size=16, num_layers=1, num_attention_heads=2, num_query_groups=1, ffn_hidden_size=16,
    max_position_embeddings=16,
)  # fmt: skip


@pytest.mark.slow  # half a minute
def test_an_engine_gets_the_current_weights(saved: Path, tmp_path: Path, torchrun: Callable[..., Any]) -> None:
    torchrun(2, Path(__file__).with_name("engine_ranks.py"), saved, tmp_path / "results.json")
    for name, results in json.loads((tmp_path / "results.json").read_text()).items():
        first, moved = results["vllm"]
        assert first != moved, name
        for theirs, ours in zip((first, moved), results["megatron"], strict=True):
            for response, expected in zip(theirs, ours, strict=True):
                assert response["tokens"] == expected["tokens"], name
                assert response["finished"] == expected["finished"], name
                assert response["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4), name


def test_an_engine_that_is_not_installed_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.engine=vllm: No module named 'vllm'\. Install vllm"):
        engine_of(RolloutConfig(engine="vllm"), [], None, MODEL)


def test_vllm_with_adapters_is_refused() -> None:
    chunk = torch.nn.Module()
    module = torch.nn.Module()
    module.lora_a = torch.nn.Parameter(torch.zeros(1))
    chunk.add_module("linear", module)
    with pytest.raises(ConfigError, match=r"rollout\.engine=vllm does not support lora"):
        engine_of(RolloutConfig(engine="vllm"), [chunk], None, MODEL)
