"""Run by test_layouts.py under torchrun: trains one small model in many layouts, one after another, in one launch.

layout_ranks.py OUTPUT.json             all layouts of this world size
layout_ranks.py OUTPUT.json combined    those in COMBINED
layout_ranks.py OUTPUT.json stacked     those in STACKED, with the experts that GPUs take
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from cupola_trainer import models, optim, runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, MoEConfig, OptimizerConfig
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.config.model.positions import DualChunk, LengthScaling, Llama3Rope, YarnRope
from cupola_trainer.data.batches import Batch
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.batches import read_batches, training_samples

STEPS = 4
BATCH = BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=8)
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=1)
DENSE = ModelConfig(
    vocab_size=128,
    hidden_size=64,
    num_layers=4,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=96,
    max_position_embeddings=32,
    init_std=0.1,
)
EXPERTS = MoEConfig(
    num_experts=4,
    expert_ffn_hidden_size=48,
    shared_expert_ffn_hidden_size=64,
    aux_loss_coeff=0.05,
    z_loss_coeff=0.01,
)
MOE = replace(DENSE, tie_embeddings=False, moe=EXPERTS)
MODELS = {
    "dense": DENSE,
    "moe": MOE,
    "seq_aux": replace(MOE, moe=replace(EXPERTS, balancing="seq_aux")),
    "global_aux": replace(MOE, moe=replace(EXPERTS, balancing="global_aux")),
    "bias": replace(MOE, moe=replace(EXPERTS, balancing="bias", score_function="sigmoid", bias_update_rate=0.05)),
    "bf16": DENSE,
    "bf16_moe": MOE,
    "states": DENSE,
    "states_moe": MOE,
    "capacity": replace(MOE, moe=replace(EXPERTS, capacity_factor=0.8)),
    "llama": replace(DENSE, qkv_bias=False, rope_scaling=Llama3Rope(original_max_position_embeddings=16)),
    "qk_norm": replace(DENSE, qkv_bias=False, qk_norm=True),
    "dual_chunk": replace(
        DENSE,
        rope_scaling=YarnRope(factor=2.0, original_max_position_embeddings=8),
        dual_chunk=DualChunk(chunk_size=12, local_window=4),
        length_scaling=LengthScaling(original_max_position_embeddings=8),
    ),
    "logn": replace(DENSE, length_scaling=LengthScaling(original_max_position_embeddings=8), attention_windows=(6, 12)),
    "scalar": replace(DENSE, head="scalar"),
    "scalar_moe": replace(MOE, head="scalar"),
    "logits": DENSE,
    "packed": DENSE,
    "packed_odd": replace(DENSE, hidden_size=48, num_attention_heads=6, num_query_groups=2),
    "gemma2": replace(
        DENSE,
        head_dim=24,
        activation="gelu_tanh",
        attention_windows=(12, None),
        query_pre_attn_scalar=20,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        zero_centered_norm=True,
        post_norm=True,
        qkv_bias=False,
        scale_embeddings=True,
    ),
}
MODELS["gemma3"] = replace(
    MODELS["gemma2"],
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    qk_norm=True,
    local_rope_theta=100.0,
    rope_theta=1e4,
)
MODELS["olmo2"] = replace(DENSE, qkv_bias=False, joint_qk_norm=True, pre_norm=False, post_norm=True)
MODELS |= {f"packed_{name}": MODELS[name] for name in ("moe", "dual_chunk", "gemma2", "gemma3")}

LAYOUTS = {
    "packed one process": LayoutConfig(),
    "packed selective recompute": LayoutConfig(recompute="selective"),
    "packed full recompute": LayoutConfig(recompute="full"),
    "packed tp2 sp": LayoutConfig(tp=2, sp=True),
    "packed pp2 vp2": LayoutConfig(pp=2, vp=2),
    "packed cp2": LayoutConfig(cp=2),
    "packed_odd one process": LayoutConfig(),
    "packed_odd cp4": LayoutConfig(cp=4),
    "packed_odd tp2 cp2": LayoutConfig(tp=2, cp=2),
    "packed_moe one process": LayoutConfig(),
    "packed_moe cp2 ep2": LayoutConfig(cp=2, ep=2),
    "packed_dual_chunk one process": LayoutConfig(),
    "packed_dual_chunk cp2": LayoutConfig(cp=2),
    "packed_gemma2 one process": LayoutConfig(),
    "packed_gemma2 cp2": LayoutConfig(cp=2),
    "packed_gemma3 one process": LayoutConfig(),
    "packed_gemma3 cp2": LayoutConfig(cp=2),
    "gemma3 one process": LayoutConfig(),
    "gemma3 tp2 sp": LayoutConfig(tp=2, sp=True),
    "gemma3 pp2 vp2": LayoutConfig(pp=2, vp=2),
    "olmo2 one process": LayoutConfig(),
    "olmo2 tp2": LayoutConfig(tp=2),
    "olmo2 tp2 sp": LayoutConfig(tp=2, sp=True),
    "olmo2 pp2": LayoutConfig(pp=2),
    "olmo2 cp2": LayoutConfig(cp=2),
    "dual_chunk cp2": LayoutConfig(cp=2),
    "dense one process": LayoutConfig(),
    "dense tp2": LayoutConfig(tp=2),
    "dense tp2 sp": LayoutConfig(tp=2, sp=True),
    "dense pp2": LayoutConfig(pp=2),
    "dense pp2 vp2": LayoutConfig(pp=2, vp=2),
    "dense dp2": LayoutConfig(dp=2),
    "dense dp2 whole optimizer": LayoutConfig(dp=2, distributed_optimizer=False),
    "dense dp2 overlap": LayoutConfig(dp=2, overlap=True),
    "dense cp2": LayoutConfig(cp=2),
    "dense tp2 pp2": LayoutConfig(tp=2, pp=2),
    "moe one process": LayoutConfig(),
    "moe ep2": LayoutConfig(dp=2, ep=2),
    "moe dp2 ep2 overlap": LayoutConfig(dp=2, ep=2, overlap=True),
    "moe dp2 offloaded optimizer": LayoutConfig(dp=2, offload_optimizer=True),
    "moe dp2": LayoutConfig(dp=2),
    "moe tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "moe tp2 sp etp2": LayoutConfig(tp=2, sp=True),
    "moe tp2 sp etp1": LayoutConfig(tp=2, sp=True, etp=1),
    "moe dp2 etp2": LayoutConfig(dp=2, etp=2),
    "moe pp2": LayoutConfig(pp=2),
    "moe cp2": LayoutConfig(cp=2),
    "moe tp2 sp ep2 dp2": LayoutConfig(tp=2, sp=True, ep=2, dp=2),
    "seq_aux one process": LayoutConfig(),
    "seq_aux tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "seq_aux cp2": LayoutConfig(cp=2),
    "global_aux one process": LayoutConfig(),
    "global_aux tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "global_aux pp2": LayoutConfig(pp=2),
    "bias one process": LayoutConfig(),
    "bias dp2 ep2": LayoutConfig(dp=2, ep=2),
    "bias tp2 sp pp2": LayoutConfig(tp=2, sp=True, pp=2),
    "bf16 one process": LayoutConfig(),
    "bf16 tp2 sp": LayoutConfig(tp=2, sp=True),
    "bf16 dp2": LayoutConfig(dp=2),
    "bf16_moe dp2 ep2": LayoutConfig(dp=2, ep=2),
    "states one process": LayoutConfig(),
    "states dp2": LayoutConfig(dp=2),
    "states tp2 sp": LayoutConfig(tp=2, sp=True),
    "states_moe one process": LayoutConfig(),
    "states_moe dp2 ep2": LayoutConfig(dp=2, ep=2),
    "capacity one process": LayoutConfig(),
    "capacity dp2 ep2": LayoutConfig(dp=2, ep=2),
    "capacity tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "capacity cp2": LayoutConfig(cp=2),
    "llama one process": LayoutConfig(),
    "llama tp2 sp": LayoutConfig(tp=2, sp=True),
    "qk_norm one process": LayoutConfig(),
    "qk_norm tp2": LayoutConfig(tp=2),
    "qk_norm tp2 sp": LayoutConfig(tp=2, sp=True),
    "qk_norm cp2": LayoutConfig(cp=2),
    "dual_chunk one process": LayoutConfig(),
    "dual_chunk tp2 sp": LayoutConfig(tp=2, sp=True),
    "dual_chunk pp2 vp2": LayoutConfig(pp=2, vp=2),
    "logn one process": LayoutConfig(),
    "logn cp2": LayoutConfig(cp=2),
    "gemma2 one process": LayoutConfig(),
    "gemma2 tp2 sp": LayoutConfig(tp=2, sp=True),
    "gemma2 pp2 vp2": LayoutConfig(pp=2, vp=2),
    "gemma2 cp2": LayoutConfig(cp=2),
    "gemma2 dp2 overlap": LayoutConfig(dp=2, overlap=True),
    "scalar one process": LayoutConfig(),
    "scalar tp2": LayoutConfig(tp=2),
    "scalar tp2 sp": LayoutConfig(tp=2, sp=True),
    "scalar pp2 vp2": LayoutConfig(pp=2, vp=2),
    "scalar cp2": LayoutConfig(cp=2),
    "scalar dp2": LayoutConfig(dp=2),
    "scalar_moe one process": LayoutConfig(),
    "scalar_moe tp2 sp ep2 dp2": LayoutConfig(tp=2, sp=True, ep=2, dp=2),
    "scalar_moe pp2": LayoutConfig(pp=2),
    "logits one process": LayoutConfig(),
    "logits tp2 sp": LayoutConfig(tp=2, sp=True),
    "logits tp2 pp2": LayoutConfig(tp=2, pp=2),
    "logits cp2": LayoutConfig(cp=2),
    "dense full recompute": LayoutConfig(pp=2, recompute="full"),
    "dense selective recompute": LayoutConfig(recompute="selective"),
    "moe full recompute": LayoutConfig(dp=2, ep=2, recompute="full"),
    "moe selective recompute": LayoutConfig(recompute="selective"),
}

COMBINED = {
    "dense pp2 vp2 full recompute": LayoutConfig(pp=2, vp=2, recompute="full"),
    "dense tp2 dp2": LayoutConfig(tp=2, dp=2),
    "dense tp2 cp2": LayoutConfig(tp=2, cp=2),
    "dense tp2 sp pp2 vp2": LayoutConfig(tp=2, sp=True, pp=2, vp=2),
    "dense cp2 dp2 overlap": LayoutConfig(cp=2, dp=2, overlap=True),
    "dense cp2 pp2": LayoutConfig(cp=2, pp=2),
    "dense pp2 dp2 overlap": LayoutConfig(pp=2, dp=2, overlap=True),
    "dense pp2 vp2 dp2 overlap": LayoutConfig(pp=2, vp=2, dp=2, overlap=True),
    "dense pp2 dp2 whole optimizer": LayoutConfig(pp=2, dp=2, distributed_optimizer=False),
    "dense pp4": LayoutConfig(pp=4),
    "dense dp4 selective recompute": LayoutConfig(dp=4, recompute="selective"),
    "moe pp2 vp2": LayoutConfig(pp=2, vp=2),
    "moe cp2 ep2": LayoutConfig(cp=2, ep=2),
    "moe tp2 sp ep2 overlap": LayoutConfig(tp=2, sp=True, ep=2, overlap=True),
    "moe dp2 ep2 whole optimizer": LayoutConfig(dp=2, ep=2, distributed_optimizer=False),
    "moe dp4 ep4": LayoutConfig(dp=4, ep=4),
    "moe dp4 ep2 overlap": LayoutConfig(dp=4, ep=2, overlap=True),
    "moe tp2 sp dp2 ep4": LayoutConfig(tp=2, sp=True, dp=2, ep=4),
    "moe tp2 sp etp2 dp2": LayoutConfig(tp=2, sp=True, dp=2),
    "moe tp2 sp ep2 etp2 dp2": LayoutConfig(tp=2, sp=True, dp=2, ep=2, etp=2),
    "moe dp4 ep2 etp2": LayoutConfig(dp=4, ep=2, etp=2),
    "moe tp2 sp cp2 ep2": LayoutConfig(tp=2, sp=True, cp=2, ep=2),
    "moe tp2 sp pp2 vp2 ep2": LayoutConfig(tp=2, sp=True, pp=2, vp=2, ep=2),
    "moe tp2 sp pp2 ep2 selective recompute": LayoutConfig(tp=2, sp=True, pp=2, ep=2, recompute="selective"),
    "moe pp2 dp2 ep2 overlap": LayoutConfig(pp=2, dp=2, ep=2, overlap=True),
    "moe cp2 pp2": LayoutConfig(cp=2, pp=2),
    "moe cp2 dp2 ep4": LayoutConfig(cp=2, dp=2, ep=4),
    "seq_aux pp2 dp2 ep2": LayoutConfig(pp=2, dp=2, ep=2),
    "seq_aux tp2 sp cp2": LayoutConfig(tp=2, sp=True, cp=2),
    "global_aux cp2 ep2": LayoutConfig(cp=2, ep=2),
    "global_aux tp2 sp pp2 vp2": LayoutConfig(tp=2, sp=True, pp=2, vp=2),
    "states pp2 dp2 whole optimizer": LayoutConfig(pp=2, dp=2, distributed_optimizer=False),
    "states_moe tp2 sp pp2 vp2 ep2": LayoutConfig(tp=2, sp=True, pp=2, vp=2, ep=2),
    "bias cp2 dp2 ep4": LayoutConfig(cp=2, dp=2, ep=4),
    "bias pp2 vp2 dp2 ep2": LayoutConfig(pp=2, vp=2, dp=2, ep=2),
    "bias tp2 sp etp2 dp2 overlap": LayoutConfig(tp=2, sp=True, dp=2, overlap=True),
    "capacity pp2 dp2 ep2": LayoutConfig(pp=2, dp=2, ep=2),
    "capacity tp2 sp etp2 dp2": LayoutConfig(tp=2, sp=True, dp=2),
    "capacity tp2 sp ep2 etp2 dp2": LayoutConfig(tp=2, sp=True, dp=2, ep=2, etp=2),
    "capacity dp4 ep4 full recompute": LayoutConfig(dp=4, ep=4, recompute="full"),
}
"""Two or more kinds of parallelism at once, also with each kind of load balancing. Slow."""


STACKED = {
    "moe one process": LayoutConfig(),
    "packed_moe one process": LayoutConfig(),
    "bf16_moe one process": LayoutConfig(),
    "capacity one process": LayoutConfig(),
    "moe ep2": LayoutConfig(dp=2, ep=2),
    "moe tp2 sp etp2": LayoutConfig(tp=2, sp=True),
    "moe dp2 overlap": LayoutConfig(dp=2, overlap=True),
    "moe pp2 vp2 full recompute": LayoutConfig(pp=2, vp=2, recompute="full"),
    "moe cp2 ep2 whole optimizer": LayoutConfig(cp=2, ep=2, distributed_optimizer=False),
}


class MaskedWords(Objective):
    """Random tokens, about half of them masked, so that the count differs from the number of tokens and between
    micro-batches."""

    name = "masked_words"
    lr = OPTIMIZER.lr

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        random = np.random.default_rng(index)
        return {
            "tokens": random.integers(0, DENSE.vocab_size, BATCH.sequence_length + 1),
            "mask": random.integers(0, 2, BATCH.sequence_length).astype(np.float32),
        }

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        tokens = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.from_numpy(np.stack([sample["mask"] for sample in samples])),
            "position_ids": torch.arange(BATCH.sequence_length).expand(len(samples), -1).contiguous(),
        }

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        return (output.float() * batch["loss_mask"]).sum(), self.count(batch), {}


class PackedWords(MaskedWords):
    """Several texts in a row, of one token and more."""

    name = "packed_words"

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        starts = torch.from_numpy(np.stack([sample["tokens"][:-1] % 7 == 0 for sample in samples]))
        return {**super().collate(samples), "segments": starts.cumsum(dim=1)}


class Values(MaskedWords):
    """Regression with a scalar head: squared distances from a target derived from each token."""

    name = "values"
    reads = "values"
    # at 3e-3 this does not converge: a single rounding of the weights changes the loss of the fourth step by 1.5e-5
    lr = 1e-3

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        distances = (output - batch["labels"] / DENSE.vocab_size).square()
        return (distances * batch["loss_mask"]).sum(), self.count(batch), {}


class Logits(MaskedWords):
    """Reads this rank's part of the logits and computes the same loss as MaskedWords."""

    name = "logits"
    reads = "logits"

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy  # after the runtime's patches

        return super().loss(vocab_parallel_cross_entropy(output.clone(), batch["labels"]), batch)


def batches_of(objective: Objective, step: int) -> list[Batch]:
    """This rank's micro-batches of a step."""
    return read_batches(objective, training_samples(objective, BATCH, step * BATCH.global_batch_size))


def objective_of(name: str) -> MaskedWords:
    if name.startswith("packed"):
        return PackedWords()
    return Logits() if name.startswith("logits") else Values() if name.startswith("scalar") else MaskedWords()


def trajectory(
    model: ModelConfig,
    layout: LayoutConfig,
    precision: str,
    objective: MaskedWords,
    states: Literal["fp32", "bf16"] = "fp32",
) -> list[dict[str, float]]:
    """Loss, gradient norm and balancing loss of each step."""
    validate_layout(model, layout, BATCH)
    runtime.start(layout, seed=0)
    passes.aux_losses(model, 1)  # clears what other tests of this process may have left
    chunks = models.build(model, layout, seed=5, dtype=runtime.dtype(precision))
    trainee = optim.build(chunks, layout, replace(OPTIMIZER, lr=objective.lr, states=states), STEPS)
    assert {param.dtype for group in trainee.optimizer.param_groups for param in group["params"]} == {torch.float32}
    steps = []
    for step in range(STEPS):
        batches = batches_of(objective, step)
        means = passes.train(trainee.chunks, objective, batches)
        trainee.scheduler.step(increment=1)
        means["grad_norm"], _ = trainee.update()
        if model.moe:
            means |= passes.aux_losses(model, len(batches))
        steps.append(means)
    return steps


def main(output: Path, layouts: Mapping[str, LayoutConfig]) -> None:
    results = {
        name: trajectory(
            MODELS[name.split()[0]],
            layout,
            "bf16" if name.startswith("bf16") else "fp32",
            objective_of(name),
            "bf16" if name.startswith("states") else "fp32",
        )
        for name, layout in sorted(layouts.items(), key=lambda item: str(item[1]))  # equal layouts share their groups
        if layout.world_size == runtime.world_size()
    }
    if runtime.rank() == 0:
        output.write_text(json.dumps(results))
    runtime.stop()


if __name__ == "__main__":
    wanted = sys.argv[2:]
    if wanted == ["stacked"]:
        runtime.has_grouped_products = lambda dtype: True
    main(Path(sys.argv[1]), COMBINED if wanted == ["combined"] else STACKED if wanted else LAYOUTS)
