"""The forecast of memory: what each setting takes off it, and its count of a model in training against a real one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.trainer.training.layout_ranks import BATCH, MODELS, MaskedWords, batches_of

from cupola_trainer import models, optim, runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, MoEConfig, OptimizerConfig
from cupola_trainer.config.memory import Forecast, forecast
from cupola_trainer.objectives import passes

DENSE = ModelConfig(
    vocab_size=1024, hidden_size=256, num_layers=8, num_attention_heads=4, num_query_groups=4, ffn_hidden_size=512,
    max_position_embeddings=4096,
)  # fmt: skip
MOE = replace(
    DENSE, moe=MoEConfig(num_experts=8, top_k=2, expert_ffn_hidden_size=128, shared_expert_ffn_hidden_size=128)
)
ROWS = BatchConfig(sequence_length=1024, micro_batch_size=2, global_batch_size=64)


def of(model: ModelConfig = DENSE, states: Any = "fp32", size: int = 2, **layout: Any) -> Forecast:
    return forecast(model, LayoutConfig(**layout), ROWS, OptimizerConfig(states=states), size)


def test_a_bf16_weight_takes_eighteen_bytes_and_settings_take_off_some() -> None:
    weights = of().state / 18
    assert weights == 8 * (256 * 4 * 256 + 3 * 256 * 512) + 1024 * 256  # attention is 2 x 256 of q and o, and k and v
    assert of(size=4).state == 16 * weights
    assert of(states="bf16").state == 14 * weights
    assert of(offload_optimizer=True).state == 10 * weights
    assert of(dp=4).state == (6 + 12 / 4) * weights
    assert of(dp=4, distributed_optimizer=False).state == 18 * weights
    assert of(tp=2).state == 9 * weights


def test_recomputing_splitting_and_offloading_take_off_what_layers_keep() -> None:
    plain = of().per_token
    assert plain == 8 * 2 * (4 * 256 + (2 * 12 + 4) * 64 + 3 * 512)
    assert of(recompute="full").per_token == plain / 8 + 8 * 2 * 256
    assert of(offload_activations=True).per_token == plain / 4
    assert of(cp=2).per_token == plain / 2
    assert of(tp=2, sp=True).per_token == plain / 2
    assert of(pp=2).per_token == plain  # half of the layers, of two micro-batches
    assert of(tp=2).per_token > plain / 2


def test_experts_are_split_over_their_own_ranks() -> None:
    dense, experts = 8 * (256 * 4 * 256 + 3 * 256 * 128) + 1024 * 256, 8 * 8 * 3 * 256 * 128
    assert of(MOE).state == 18 * (dense + experts)
    assert of(MOE, dp=4, ep=4).state == (6 + 12 / 4) * dense + 18 * experts / 4


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_what_layers_keep_of_a_small_model_is_as_forecast(name: str) -> None:
    """In fp32 on a CPU, whose kernels keep about what is counted: within a half, for nothing but layers counts."""
    runtime.start(LayoutConfig(), seed=0)
    model = MODELS[name]
    chunks = models.build(model, LayoutConfig(), seed=0)
    trainee = optim.build(chunks, LayoutConfig(), OptimizerConfig(), 1)
    weights = {weight.data_ptr() for weight in trainee.chunks[0].parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        passes.train(trainee.chunks, MaskedWords(), batches_of(MaskedWords(), 0)[:1])
    wanted = forecast(model, LayoutConfig(), BATCH, OptimizerConfig(), 4)
    assert sum(kept.values()) == pytest.approx(wanted.per_token * wanted.tokens, rel=0.5)
    runtime.stop()
