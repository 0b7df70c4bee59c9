"""Run by test_objective_layouts.py under torchrun: trains a small model on each post-training objective in many layouts.

objective_ranks.py TEACHER OUTPUT.json     all layouts of this world size; a single process also writes the teacher
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.config import (
    BatchConfig,
    DistillationData,
    DpoData,
    LayoutConfig,
    ModelConfig,
    MoEConfig,
    OptimizerConfig,
    RewardData,
)
from cupola_trainer.config.layout_rules import validate_layout
from cupola_trainer.data.batches import Batch
from cupola_trainer.forward import outputs
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.batches import read_batches, training_samples
from cupola_trainer.objectives.distillation import LiveTeacher
from cupola_trainer.objectives.dpo import DpoObjective
from cupola_trainer.objectives.replay import ReplayObjective
from cupola_trainer.objectives.reward import RewardObjective
from cupola_trainer.objectives.sft import SftObjective

STEPS, LENGTH = 2, 32
BATCH = BatchConfig(sequence_length=LENGTH, micro_batch_size=2, global_batch_size=8)
DENSE = ModelConfig(
    vocab_size=128, hidden_size=64, num_layers=4, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=96,
    max_position_embeddings=LENGTH, init_std=0.1,
)  # fmt: skip
MOE = replace(
    DENSE,
    tie_embeddings=False,
    moe=MoEConfig(num_experts=4, expert_ffn_hidden_size=48, shared_expert_ffn_hidden_size=64, aux_loss_coeff=0.05),
)
TEACHER = replace(DENSE, hidden_size=32, tie_embeddings=False, final_logit_softcapping=5.0)
LAYOUTS = {
    "one process": LayoutConfig(),
    "tp2 sp": LayoutConfig(tp=2, sp=True),
    "pp2": LayoutConfig(pp=2),
    "pp2 vp2": LayoutConfig(pp=2, vp=2),
    "cp2": LayoutConfig(cp=2),
    "dp2": LayoutConfig(dp=2),
    "ep2 dp2": LayoutConfig(ep=2, dp=2),
    "pp2 full recompute": LayoutConfig(pp=2, recompute="full"),
    "pp2 vp2 full recompute": LayoutConfig(pp=2, vp=2, recompute="full"),
}
OBJECTIVES = ("dpo", "kto", "reward", "forward_kl", "jsd", "replay")


def pair(index: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(index)
    lengths = random.integers(3, 10, 3)
    parts = [random.integers(0, DENSE.vocab_size, length) for length in lengths]
    sample = dict(zip(("prompt", "chosen", "rejected"), parts, strict=True))
    return {**sample, "reference": random.normal(size=2).astype(np.float32) - 30, "margin": np.float32(0.5)}


class Pairs(DpoObjective):
    """Random pairs, with random reference log-probabilities."""

    def __init__(self) -> None:
        self.data = DpoData(preferences=Path(), sft_weight=0.3)
        self.sequence_length = LENGTH

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return pair(index)


class Judged(Pairs):
    """The same under KTO's loss, each with a response to another prompt."""

    def __init__(self) -> None:
        self.data = DpoData(preferences=Path(), loss_type="kto", undesirable_weight=1.5)
        self.sequence_length = LENGTH

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        sample, other = pair(index), pair(index + 1000)
        reference = np.concatenate([sample["reference"], other["reference"][:1] - 20])  # a KL above 0
        return {**sample, "mismatched": other["chosen"], "reference": reference}


class Ranked(RewardObjective):
    """Random pairs with margins."""

    def __init__(self) -> None:
        self.data = RewardData(preferences=Path(), margin=1.0, center=0.01)
        self.sequence_length = LENGTH

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return pair(index)


class Conversations(SftObjective):
    """Random conversations, one per row, with about half of the tokens trained on."""

    def __init__(self, packed: bool) -> None:
        self.sequence_length, self.packed, self.epoch = LENGTH, packed, None

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        random = np.random.default_rng(index)
        length = int(random.integers(8, LENGTH))
        return {
            "tokens": random.integers(0, DENSE.vocab_size, length),
            "mask": random.integers(0, 2, length) > 0,
            "segments": np.ones(length, dtype=np.int64),
        }


class Words(Objective):
    """Random tokens, about half of them trained on."""

    name = "words"

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        random = np.random.default_rng(index)
        mask = random.integers(0, 2, LENGTH).astype(np.float32)
        tokens = random.integers(0, DENSE.vocab_size, LENGTH + 1)
        return {"tokens": tokens, "mask": mask, "labels": tokens[1:], "loss_mask": mask}

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        tokens = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.from_numpy(np.stack([sample["mask"] for sample in samples])),
            "position_ids": torch.arange(LENGTH).expand(len(samples), -1).contiguous(),
        }

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        raise NotImplementedError


class Sequences(Words):
    """The same in the format of next-token training: tokens as long as labels."""

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        sample = super().sample(index)
        return {**sample, "tokens": sample["tokens"][:-1]}


def objective_of(name: str, teacher: Path, layout: LayoutConfig) -> Objective:
    if name == "dpo":
        return Pairs()
    if name == "kto":
        return Judged()
    if name == "reward":
        return Ranked()
    if name == "sft":
        return Conversations(packed=layout.cp == 1)
    if name == "replay":
        return ReplayObjective(Conversations(packed=layout.cp == 1), Sequences(), share=0.25)
    kind: Any = name
    data = DistillationData(teacher=teacher, tokens=teacher, divergence=kind, temperature=1.5, token_loss=0.2, beta=0.3)
    return LiveTeacher(data, Words(), student=DENSE, layout=layout)


def trajectory(name: str, model: ModelConfig, layout: LayoutConfig, teacher: Path) -> list[dict[str, float]]:
    model = replace(model, head="scalar" if name == "reward" else "language_model")
    validate_layout(model, layout, BATCH)
    runtime.start(layout, seed=0)
    if not teacher.exists():
        write_teacher(teacher)
    objective = objective_of(name, teacher, layout)
    chunks = models.build(model, layout, seed=5)
    trainee = optim.build(chunks, layout, OptimizerConfig(lr=3e-3, warmup_steps=1), STEPS)
    before = forward_only_sum(trainee.chunks, objective) if name in ("dpo", "reward") else {}
    steps = []
    for step in range(STEPS):
        means = passes.train(
            trainee.chunks,
            objective,
            read_batches(objective, training_samples(objective, BATCH, step * BATCH.global_batch_size)),
        )
        trainee.scheduler.step(increment=1)
        means["grad_norm"], _ = trainee.update()
        steps.append(means | before)
    return steps


def forward_only_sum(chunks: list[torch.nn.Module], objective: Objective) -> dict[str, float]:
    """Outputs of a forward-only pass on one batch, as for a reference or a reward model."""
    batch = objective.collate([pair(100), pair(101)])
    look = outputs.values if objective.reads == "values" else outputs.token_losses
    return {"forward_only_sum": float((look(chunks, batch) * batch["loss_mask"].to(runtime.device())).sum())}


def write_teacher(folder: Path) -> None:
    checkpoint.save(
        folder, models.build(TEACHER, LayoutConfig(), seed=11), model=TEACHER, layout=LayoutConfig(), step=0,
        consumed_samples=0, seed=11, objective="next_token", tokenizer=None,
    )  # fmt: skip


def main(teacher: Path, output: Path) -> None:
    results = {}
    for case, layout in LAYOUTS.items():
        if layout.world_size == runtime.world_size():
            if layout.pp > 1:
                results[f"sft moe {case}"] = trajectory("sft", MOE, layout, teacher)
            for name in OBJECTIVES:
                if layout.ep == 1 and layout.recompute == "none":
                    results[f"{name} dense {case}"] = trajectory(name, DENSE, layout, teacher)
                if name in ("reward", "forward_kl", "replay") and case in ("one process", "ep2 dp2", "tp2 sp"):
                    results[f"{name} moe {case}"] = trajectory(name, MOE, layout, teacher)
    if runtime.rank() == 0:
        output.write_text(json.dumps(results))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
