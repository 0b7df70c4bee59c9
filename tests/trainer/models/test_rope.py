"""RoPE's frequencies and attention factors match transformers, for every scaling and length."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.model.positions import DynamicRope, LinearRope, Llama3Rope, YarnRope
from cupola_trainer.conversion.config_json import to_config
from cupola_trainer.models.attention.rope import Rotary, attention_factor, inverse_frequencies

SCALINGS: dict[str, Any] = {
    "linear": LinearRope(factor=3.0),
    "dynamic": DynamicRope(factor=4.0, original_max_position_embeddings=64),
    "yarn": YarnRope(factor=4.0, original_max_position_embeddings=64),
    "yarn with all its settings": YarnRope(
        factor=8.0, original_max_position_embeddings=128, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3
    ),
    "llama3": Llama3Rope(original_max_position_embeddings=64),
    "llama3 with all its settings": Llama3Rope(
        factor=32.0, low_freq_factor=2.0, high_freq_factor=5.0, original_max_position_embeddings=512
    ),
}


def model_with(scaling: Any, theta: float = 1e6) -> ModelConfig:
    return ModelConfig(vocab_size=64, hidden_size=256, num_layers=1, num_attention_heads=2, num_query_groups=1,
                       ffn_hidden_size=64, max_position_embeddings=256, rope_theta=theta,
                       rope_scaling=scaling)  # fmt: skip


@pytest.mark.parametrize("theta", [1e4, 1e6])
@pytest.mark.parametrize("length", [10, 64, 65, 200])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_factor_equal_transformers(name: str, length: int, theta: float) -> None:
    model = model_with(SCALINGS[name], theta)
    config = to_config(model, dtype="float32", bos=None, eos=None, pad=None)
    theirs = AutoConfig.for_model(config.pop("model_type"), **config)
    expected, factor = ROPE_INIT_FUNCTIONS[name.split()[0]](theirs, "cpu", seq_len=length)
    torch.testing.assert_close(inverse_frequencies(model, length), expected, rtol=1e-6, atol=0)
    assert attention_factor(model) == pytest.approx(factor, rel=1e-12)


def test_each_row_of_a_batch_is_scaled_by_its_own_length() -> None:
    model = model_with(SCALINGS["dynamic"])
    rotary = Rotary(model, None)
    positions = torch.tensor([[198, 199], [9, 10]])
    long, short = rotary.at(positions)
    assert torch.equal(long, rotary.get_emb(200)[198:200, 0, 0])
    assert torch.equal(short, rotary.get_emb(11)[9:11, 0, 0])
    assert torch.equal(short, Rotary(model_with(None), None).at(positions)[1])
