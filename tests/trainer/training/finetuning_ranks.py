"""Run by test_finetuning_layouts.py under torchrun: the same fine-tuning in many layouts, with online merging and LoRA.

finetuning_ranks.py MODELS OUTPUT.json     MODELS as written by three_models.py

OUTPUT.json gets "trajectories" (losses and gradient norms) and "weights" (digests of the weights after online merging
with fixed gradients, bit for bit equal in every layout).
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cupola_trainer import checkpoint, models, optim, runtime
from cupola_trainer.checkpoint.shards import Shard, master_shards, weight_shards
from cupola_trainer.config import BatchConfig, LayoutConfig, LoraConfig, OnlineMergingConfig, OptimizerConfig
from cupola_trainer.data.batches import Batch
from cupola_trainer.lora import attaching
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.base import Objective
from cupola_trainer.objectives.batches import read_batches, training_samples
from cupola_trainer.optim import Trainee
from cupola_trainer.optim.online_merging import hashed
from cupola_trainer.upcycling.experts import derived_seed

STEPS = 3
BATCH = BatchConfig(sequence_length=32, micro_batch_size=2, global_batch_size=4)
LAYOUTS = {
    "one process": LayoutConfig(),
    "one whole optimizer": LayoutConfig(distributed_optimizer=False),
    "one full recompute": LayoutConfig(recompute="full"),
    "tp2": LayoutConfig(tp=2),
    "tp2 sp": LayoutConfig(tp=2, sp=True),
    "pp2": LayoutConfig(pp=2),
    "cp2": LayoutConfig(cp=2),
    "dp2": LayoutConfig(dp=2),
    "dp2 ep2": LayoutConfig(dp=2, ep=2),
    "tp2 sp ep2": LayoutConfig(tp=2, sp=True, ep=2),
    "dp2 whole optimizer": LayoutConfig(dp=2, distributed_optimizer=False),
}
METHODS: dict[str, Callable[[Path], OnlineMergingConfig | LoraConfig]] = {
    "ondare": lambda base: OnlineMergingConfig(method="ondare", alpha=0.3, density=0.4, online_step=2, base=base),
    "onties": lambda base: OnlineMergingConfig(method="onties", alpha=0.3, density=0.4, base=base),
    "lora": lambda base: LoraConfig(rank=4, alpha=16, targets=("attention", "mlp")),
    "lora of experts": lambda base: LoraConfig(rank=4, alpha=16, targets=("experts",)),
}
MODELS = {"dense": ("two", "base"), "moe": ("tuned_mixture", "mixture")}


class Words(Objective):
    """Random tokens, all trained on."""

    name = "words"

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        return {"tokens": np.random.default_rng(index).integers(0, 256, BATCH.sequence_length + 1)}

    def heldout(self, index: int) -> Mapping[str, np.ndarray] | None:
        return None

    def collate(self, samples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        tokens = torch.from_numpy(np.stack([sample["tokens"] for sample in samples]))
        return {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(len(samples), BATCH.sequence_length),
            "position_ids": torch.arange(BATCH.sequence_length).expand(len(samples), -1).contiguous(),
        }

    def loss(self, output: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        return (output.float() * batch["loss_mask"]).sum(), self.count(batch), {}


def trainee_of(folder: Path, name: str, layout: LayoutConfig, method: OnlineMergingConfig | LoraConfig) -> Trainee:
    runtime.start(layout, seed=0)
    model = checkpoint.read_model(folder / name)
    chunks = models.build(model, layout, seed=None)
    checkpoint.load_weights(folder / name, chunks)
    if isinstance(method, LoraConfig):
        attaching.attach(chunks, method, model, layout, seed=7)
    trainee = optim.build(chunks, layout, OptimizerConfig(lr=1e-2), STEPS)
    if isinstance(method, OnlineMergingConfig):
        optim.merge_online(trainee, method, folder / name, model, seed=7)
    return trainee


def trajectory(trainee: Trainee) -> list[float]:
    """Loss and gradient norm of each step, interleaved."""
    numbers = []
    for step in range(STEPS):
        means = passes.train(
            trainee.chunks,
            Words(),
            read_batches(Words(), training_samples(Words(), BATCH, step * BATCH.global_batch_size)),
        )
        trainee.scheduler.step(increment=1)
        norm, _ = trainee.update()
        numbers += [means["loss"], norm]
    return numbers


def weights(trainee: Trainee) -> str:
    """Digest of all weights after `STEPS` updates with gradients that depend only on an element's name and index."""
    for step in range(STEPS):
        for part in trainee.optimizer.chained_optimizers:
            if not part.is_stub_optimizer:
                give_gradients(trainee, part, step)
        trainee.optimizer.step_with_ready_grads()
    mine = [(shard.key, shard.shape, shard.offset, shard.data.numpy()) for shard in weight_shards(trainee.chunks)]
    everyones: list[list[tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    whole: dict[str, np.ndarray] = {}
    for key, shape, offset, data in chain(*everyones):
        box = tuple(slice(at, at + size) for at, size in zip(offset, data.shape, strict=True))
        whole.setdefault(key, np.full(shape, np.nan, np.float32))[box] = data
    digest = hashlib.sha256()
    for key in sorted(whole):
        assert not np.isnan(whole[key]).any(), key
        digest.update(key.encode() + whole[key].tobytes())
    return digest.hexdigest()


def give_gradients(trainee: Trainee, part: Any, step: int) -> None:
    part.init_state_fn(part.optimizer, part.config)
    mains = [main for group in part.optimizer.param_groups for main in group["params"]]
    for main in mains:
        part.optimizer.state[main]["given"] = torch.zeros_like(main)
    for shard in master_shards(trainee.chunks, part, "given"):
        bits = hashed(places(shard), derived_seed(step, shard.key))
        shard.data.copy_((bits >> 40).float() / (1 << 23))
    for main in mains:
        main.grad = part.optimizer.state[main].pop("given")


def places(shard: Shard) -> torch.Tensor:
    """Index of each element in the flattened full tensor."""
    index = torch.zeros((), dtype=torch.int64)
    for size, start, count in zip(shard.shape, shard.offset, shard.size, strict=True):
        index = index[..., None] * size + start + torch.arange(count)
    return index


def main(folder: Path, output: Path) -> None:
    trajectories, digests = {}, {}
    for layout_name, layout in LAYOUTS.items():
        if layout.world_size != runtime.world_size():
            continue
        for kind, (name, base) in MODELS.items():
            unfit = layout.ep > 1 if kind == "dense" else layout.tp > 1 and layout.ep == 1
            for method, config in METHODS.items():
                if unfit or (method == "lora of experts" and kind == "dense"):
                    continue
                case, settings = f"{layout_name}, {kind}, {method}", config(folder / base)
                trajectories[case] = trajectory(trainee_of(folder, name, layout, settings))
                if isinstance(settings, OnlineMergingConfig):
                    digests[case] = weights(trainee_of(folder, name, layout, settings))
    if runtime.rank() == 0:
        output.write_text(json.dumps({"trajectories": trajectories, "weights": digests}))
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
