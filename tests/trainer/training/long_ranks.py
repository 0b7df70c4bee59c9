"""Run by test_long_rows.py under torchrun: one training step on long rows, and the memory that it took.

long_ranks.py OBJECTIVE LENGTH OUTPUT.json     OBJECTIVE: sft (packed), dpo, grpo, next_token; the demo's width
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cupola_trainer import models, optim, runtime
from cupola_trainer.config import BatchConfig, DpoData, GrpoData, LayoutConfig, ModelConfig, OptimizerConfig
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.batches import read_batches, training_samples
from cupola_trainer.objectives.dpo import DpoObjective
from cupola_trainer.objectives.sft import SftObjective
from cupola_trainer.rl.grpo import GrpoObjective

VOCABULARY = 4096
TEXT = 200
"""Tokens of a conversation."""


def tokens_of(index: int, length: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, VOCABULARY, length)


class Conversations(SftObjective):
    """Packed random conversations."""

    def __init__(self, length: int) -> None:
        self.sequence_length, self.packed, self.epoch = length, True, None

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        length = self.sequence_length + 1
        return {
            "tokens": tokens_of(index, length),
            "mask": np.arange(length) % TEXT > TEXT // 2,
            "segments": np.arange(length) // TEXT + 1,
        }


class Pairs(DpoObjective):
    """A random pair, whose prompt is most of the row."""

    def __init__(self, length: int) -> None:
        self.data, self.sequence_length = DpoData(preferences=Path()), length

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        prompt, chosen, rejected = tokens_of(index, self.sequence_length - 64), tokens_of(1, 64), tokens_of(2, 64)
        sample = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        return {**sample, "reference": np.zeros(2, np.float32), "margin": np.zeros((), np.float32)}


class Responses(GrpoObjective):
    """A random response that fills half of its row."""

    def __init__(self, length: int) -> None:
        self.grpo, self.length = GrpoData(conversations=Path(), kl_coef=0.0), length
        self.config = self.grpo.rollout

    def width(self, index: int) -> int:
        return self.length

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        mask = (np.arange(self.length) > self.length // 2).astype(np.float32)
        columns = {"loss_mask": mask, "weights": mask, "shares": mask, "advantages": mask, "quarters": mask}
        logps = {"old_logps": -9 * mask, "sampling_logps": -9 * mask}
        return {"tokens": tokens_of(index, self.length + 1), **logps, **columns}


class Text(Conversations):
    """One random text a row."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.packed = False


OBJECTIVES: dict[str, Any] = {"sft": Conversations, "dpo": Pairs, "grpo": Responses, "next_token": Text}


class Largest(TorchDispatchMode):
    """Watches every tensor that an operation returns."""

    bytes = 0
    shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.numel() * each.element_size() > Largest.bytes:
                Largest.bytes, Largest.shape = each.numel() * each.element_size(), tuple(each.shape)
        return result


def main(name: str, length: int, output: Path) -> None:
    layout = LayoutConfig(cp=runtime.world_size())
    runtime.start(layout, seed=0)
    model = ModelConfig(
        vocab_size=VOCABULARY, hidden_size=160, num_layers=2, num_attention_heads=4, num_query_groups=2,
        ffn_hidden_size=448, max_position_embeddings=length,
    )  # fmt: skip
    batch = BatchConfig(sequence_length=length, micro_batch_size=1, global_batch_size=1)
    objective: Objective = OBJECTIVES[name](length)
    trainee = optim.build(models.build(model, layout, seed=5), layout, OptimizerConfig(), 1)
    with Largest():
        means = passes.train(trainee.chunks, objective, read_batches(objective, training_samples(objective, batch, 0)))
        norm, _ = trainee.update()
    peak = torch.tensor(float(runtime.memory_bytes()))
    torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
    if runtime.rank() == 0:
        found = {
            "largest": Largest.bytes,
            "shape": Largest.shape,
            "peak": peak.item(),
            "loss": means["loss"],
            "norm": norm,
        }
        output.write_text(json.dumps(found))
    runtime.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
