"""Set up training of a model's chunks: Megatron's data parallelism, AdamW and learning-rate schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from cupola_platform.errors import ConfigError
from cupola_trainer.checkpoint.compatibility import check_architecture
from cupola_trainer.checkpoint.description import read_model
from cupola_trainer.checkpoint.shards import ADAPTERS
from cupola_trainer.config import LayoutConfig, ModelConfig, OnlineMergingConfig, OptimizerConfig
from cupola_trainer.megatron.adam import moments_on_host
from cupola_trainer.optim.online_merging import OnlineMerging
from cupola_trainer.optim.schedule import schedule
from cupola_trainer.optim.states import count_every_step, store_moments_in


@dataclass(frozen=True)
class Trainee:
    """A model in training, with its optimizer and schedule."""

    chunks: list[torch.nn.Module]
    """Wrapped in DistributedDataParallel; one per virtual pipeline stage."""

    optimizer: Any
    """Megatron's MegatronOptimizer."""

    scheduler: OptimizerParamScheduler

    def update(self) -> tuple[float, bool]:
        """Clip gradients and update the weights; skip the update if gradients are not finite.

        Returns:
            the global gradient norm before clipping, and whether the weights were updated.
        """
        self.optimizer.prepare_grads()
        try:
            return self._clip_and_step()
        finally:
            self.optimizer.zero_grad()  # or it would be added to the next gradient

    def _clip_and_step(self) -> tuple[float, bool]:
        norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(norm):
            return norm, False
        for part in self.optimizer.chained_optimizers:  # dense and expert parameters, clipped by their common norm
            if part.config.clip_grad > 0 and not part.is_stub_optimizer:
                clip_grad_by_total_norm_fp32(part.get_parameters(), part.config.clip_grad, norm)
        self.optimizer.step_with_ready_grads()
        return norm, True

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def build(chunks: Sequence[GPTModel], layout: LayoutConfig, config: OptimizerConfig, steps: int) -> Trainee:
    """Wrap the chunks for data parallelism and create their optimizer and schedule.

    bf16 parameters have fp32 master copies in the optimizer. Weight decay applies only to matrices, not to norm weights
    and biases. Gradients are clipped to a global norm.
    """
    wrapped = data_parallel(chunks, layout)
    dtype = chunks[0].config.params_dtype
    settings = MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.lr * config.min_lr_ratio,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=layout.distributed_optimizer,
        overlap_param_gather=layout.overlap and layout.distributed_optimizer,
    )
    with moments_on_host(layout.offload_optimizer):
        optimizer = get_megatron_optimizer(settings, wrapped)
    store_moments_in(optimizer, torch.bfloat16 if config.states == "bf16" else torch.float32)
    count_every_step(optimizer)
    _schedule_hooks(chunks[0].config, wrapped, optimizer, layout)
    return Trainee(wrapped, optimizer, schedule(optimizer, config, steps))


def merge_online(
    trainee: Trainee, config: OnlineMergingConfig, parent: Path | None, model: ModelConfig, seed: int
) -> None:
    """Merge every update of the trainee with the task vector from `config.base` to `parent`. Called on every rank.

    Raises:
        ConfigError: there is no parent checkpoint, or the base has another architecture.
        CorruptArtifactError: the base does not verify.
    """
    if parent is None:
        raise ConfigError("optimizer.merging needs a parent checkpoint to merge with. Set parent.")
    if any(name.endswith(ADAPTERS) for chunk in trainee.chunks for name, _ in chunk.named_parameters()):
        raise ConfigError("optimizer.merging has no use with lora, which freezes the weights. Remove one of them.")
    check_architecture(config.base, model, read_model(config.base))
    OnlineMerging(config, trainee.chunks, trainee.optimizer, reference=parent, seed=seed)


def data_parallel(chunks: Sequence[GPTModel], layout: LayoutConfig) -> list[torch.nn.Module]:
    """Wrap a model's chunks in Megatron's data parallelism, whose buffers then hold weights and gradients."""
    config = chunks[0].config
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=layout.distributed_optimizer,
        overlap_grad_reduce=layout.overlap,
        overlap_param_gather=layout.overlap and layout.distributed_optimizer,
        grad_reduce_in_fp32=True,
    )
    if config.bf16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
    wrapped = [DistributedDataParallel(config, ddp, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)]
    for module in (module for chunk in wrapped for module in chunk.modules()):
        if hasattr(module, "fuse_wgrad_accumulation"):  # Transformer Engine adds gradients to the buffers by itself
            module.fuse_wgrad_accumulation = True
    return wrapped


def _schedule_hooks(config: Any, chunks: list[torch.nn.Module], optimizer: Any, layout: LayoutConfig) -> None:
    """Set the hooks called by Megatron's pipeline schedules."""
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    if layout.overlap:
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
