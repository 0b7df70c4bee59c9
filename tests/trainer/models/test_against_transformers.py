"""Training with Megatron-Core matches transformers' models in plain PyTorch, step by step."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from cupola_trainer import models, optim, runtime
from cupola_trainer.config import LayoutConfig, ModelConfig, MoEConfig, OptimizerConfig
from cupola_trainer.config.model.positions import Llama3Rope
from cupola_trainer.conversion.config_json import to_config
from cupola_trainer.conversion.mapping import from_huggingface
from cupola_trainer.conversion.model_writer import fill
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.next_token import NextTokenObjective

STEPS = 10
DENSE = ModelConfig(
    vocab_size=128,
    hidden_size=64,
    num_layers=3,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=160,
    max_position_embeddings=32,
    rope_theta=10_000.0,
)
MOE = ModelConfig(
    vocab_size=128,
    hidden_size=64,
    num_layers=2,
    num_attention_heads=4,
    num_query_groups=4,
    ffn_hidden_size=160,
    max_position_embeddings=32,
    tie_embeddings=False,
    moe=MoEConfig(
        num_experts=4, top_k=2, expert_ffn_hidden_size=48, shared_expert_ffn_hidden_size=96, aux_loss_coeff=0.0
    ),
)
LLAMA = replace(DENSE, qkv_bias=False, rope_scaling=Llama3Rope(original_max_position_embeddings=16))
GEMMA2 = replace(
    LLAMA,
    rope_scaling=None,
    head_dim=24,
    activation="gelu_tanh",
    attention_windows=(12, None),
    query_pre_attn_scalar=20,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=3.0,
    zero_centered_norm=True,
    post_norm=True,
    scale_embeddings=True,
)
GEMMA3 = replace(
    GEMMA2, attn_logit_softcapping=None, final_logit_softcapping=None, qk_norm=True, local_rope_theta=100.0
)
OLMO2 = replace(DENSE, qkv_bias=False, joint_qk_norm=True, pre_norm=False, post_norm=True)
QK_NORM = replace(DENSE, qkv_bias=False, qk_norm=True, head_dim=24)
"""Qwen3's shape."""
OPTIMIZER = OptimizerConfig(lr=2e-3, min_lr_ratio=0.1, warmup_steps=2, weight_decay=0.1, clip_grad=0.5)


def huggingface(model: ModelConfig) -> Any:
    torch.manual_seed(1)
    common = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "attn_implementation": "sdpa",
        "initializer_range": 0.05,
        "use_cache": False,
    }
    if not model.qkv_bias:  # families that the export supports
        config = to_config(model, dtype="float32", bos=None, eos=None, pad=None) | {"initializer_range": 0.05}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).float()
    if model.moe is None:
        return Qwen2ForCausalLM(Qwen2Config(**common)).float()
    experts = {
        "num_experts": model.moe.num_experts,
        "num_experts_per_tok": model.moe.top_k,
        "moe_intermediate_size": model.moe.expert_ffn_hidden_size,
        "shared_expert_intermediate_size": model.moe.shared_expert_ffn_hidden_size,
        "norm_topk_prob": model.moe.norm_topk_prob,
        "decoder_sparse_step": 1,
    }
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**common, **experts)).float()


def named_tensors(model: Any, moe: bool) -> dict[str, torch.Tensor]:
    """transformers' tensors under their names on disk: one tensor per expert."""
    tensors = dict(model.state_dict())
    for name in [name for name in tensors if moe and ".mlp.experts." in name]:
        stacked, base = tensors.pop(name), name.rsplit(".", 1)[0]
        for i, expert in enumerate(stacked):
            if name.endswith("gate_up_proj"):
                gate, up = expert.chunk(2)
                tensors |= {f"{base}.{i}.gate_proj.weight": gate, f"{base}.{i}.up_proj.weight": up}
            else:
                tensors[f"{base}.{i}.down_proj.weight"] = expert
    return tensors


def batch(step: int) -> Batch:
    """Four rows; the first two have more loss tokens than the others."""
    random = np.random.default_rng(step)
    tokens = torch.from_numpy(random.integers(0, 128, (4, 33)))
    counts = random.random((4, 32)) < np.array([[0.9], [0.8], [0.4], [0.3]])
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "loss_mask": torch.from_numpy(counts.astype(np.float32)),
        "position_ids": torch.arange(32).expand(4, -1),
    }


def micro_batches(whole: Batch) -> list[Batch]:
    return [{name: tensor[rows] for name, tensor in whole.items()} for rows in (slice(0, 2), slice(2, 4))]


def plain_pytorch(model: Any) -> list[tuple[float, float, float]]:
    """Loss, gradient norm and learning rate of each step: AdamW with weight decay on matrices only, warm-up, cosine
    decay, clipping."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    steps = []
    for step in range(1, STEPS + 1):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))
        lr = 2e-3 * step / 2 if step <= 2 else 2e-4 + (2e-3 - 2e-4) * cosine
        for group in adamw.param_groups:
            group["lr"] = lr
        sample = batch(step)
        logits = model(input_ids=sample["tokens"]).logits
        labels = sample["labels"].masked_fill(sample["loss_mask"] == 0, -100)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adamw.step()
        steps.append((loss.item(), norm.item(), lr))
    return steps


@pytest.mark.parametrize(
    "model",
    [DENSE, MOE, LLAMA, GEMMA2, GEMMA3, OLMO2, QK_NORM],
    ids=["dense", "moe", "llama", "gemma2", "gemma3", "olmo2", "qk_norm"],
)
def test_ten_steps_of_two_unequal_micro_batches_equal_plain_pytorch_on_the_whole(model: ModelConfig) -> None:
    theirs = huggingface(model)
    runtime.start(LayoutConfig(), seed=0)
    chunks = models.build(model, LayoutConfig())
    tensors = named_tensors(theirs, moe=model.moe is not None)
    fill(chunks, lambda key, index: from_huggingface(model, key, index, tensors.__getitem__))
    trainee = optim.build(chunks, LayoutConfig(), OPTIMIZER, STEPS)
    objective = NextTokenObjective.__new__(NextTokenObjective)  # only the loss, no data
    for step, (loss, norm, lr) in enumerate(plain_pytorch(theirs), start=1):
        means = passes.train(trainee.chunks, objective, micro_batches(batch(step)))
        trainee.scheduler.step(increment=1)
        found_norm, moved = trainee.update()
        assert moved
        assert means["loss"] == pytest.approx(loss, rel=1e-5), step
        assert found_norm == pytest.approx(norm, rel=1e-5), step
        assert trainee.learning_rate == pytest.approx(lr, rel=1e-12), step
    expected = models.build(model, LayoutConfig())
    tensors = named_tensors(theirs, moe=model.moe is not None)
    fill(expected, lambda key, index: from_huggingface(model, key, index, tensors.__getitem__))
    for (name, ours), wanted in zip(chunks[0].named_parameters(), expected[0].parameters(), strict=True):
        moved = (ours - wanted).abs()
        assert moved.max() < 2e-4, name  # a tenth of one step: Adam amplifies near-zero gradients
        assert moved.mean() < 2e-6, name
