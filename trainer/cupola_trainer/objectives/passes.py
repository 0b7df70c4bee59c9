"""Run an objective's forward and backward passes: the training step and the held-out means."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker, track_moe_metrics
from torch import Tensor

from cupola_trainer.config import ModelConfig
from cupola_trainer.data.batches import Batch
from cupola_trainer.forward.schedule import Chunks, forward, run
from cupola_trainer.models.router import weighted_forward
from cupola_trainer.models.settings import balancing_loss
from cupola_trainer.objectives.base import Objective


def train(chunks: Chunks, objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """Compute the step's gradient, in the chunks. Returns means over the global batch: "loss" and the objective's."""
    objective.enrich(batches)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    return objective.report(_means(run(chunks, batches, partial(_with_loss, objective), forward_only=False)))


@torch.no_grad()  # type: ignore[untyped-decorator]
def evaluate(chunks: Chunks, objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """Means over held-out batches, without gradient."""
    objective.enrich(batches)
    return objective.report(_means(run(chunks, batches, partial(_with_loss, objective), forward_only=True)))


def aux_losses(model: ModelConfig, micro_batches: int) -> dict[str, float]:
    """The unweighted load-balancing loss since the last call, averaged over layers and micro-batches (1 is balanced).
    Empty if experts are balanced without a loss."""
    kind = balancing_loss(model.moe) if model.moe else None
    totals: dict[str, Tensor] = {}
    if kind:
        name = kind.replace("aux", "load_balancing")
        track_moe_metrics(
            loss_scale=1 / micro_batches,
            iteration=0,
            total_loss_dict=totals,
            force_initialize=True,
            track_names=[name],
            num_layers=model.num_layers,
        )
    clear_aux_losses_tracker()
    return {"aux_loss": float(totals[name])} if kind else {}


def _with_loss(objective: Objective, iterator: Iterator[Batch], chunk: torch.nn.Module) -> tuple[Tensor, Any]:
    batch = next(iterator)
    through = partial(forward, batch, chunk, objective.reads)
    if chunk.config.num_moe_experts and torch.is_grad_enabled():
        output = weighted_forward(chunk, _count(objective, batch), through)
    else:
        output = through()
    return output, partial(_reduce, objective, batch)


def _reduce(objective: Objective, batch: Batch, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    total, count, sums = objective.loss(output, batch)
    return total, count.to(torch.int), {"loss": total.detach(), **sums, "count": count}


def _count(objective: Objective, batch: Batch) -> Tensor:
    """The objective's count of a micro-batch, summed over context-parallel ranks, on every pipeline stage. It stays on
    the device, which would otherwise have to finish all queued work first."""
    count = objective.count(batch).float()
    if parallel_state.get_context_parallel_world_size() > 1:
        count = count.clone()
        dist.all_reduce(count, group=parallel_state.get_context_parallel_group())
    return count


def _means(results: list[dict[str, Tensor]]) -> dict[str, float]:
    """Sums over micro-batches and ranks, divided by the count; the same on every rank."""
    means: dict[str, float] = {}
    if results:
        names = sorted(results[0])
        sums = torch.stack([sum(result[name].double() for result in results) for name in names])
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        totals = dict(zip(names, sums.tolist(), strict=True))
        count = totals.pop("count")
        means = {name: total / count if count else 0.0 for name, total in totals.items()}
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return means
    shared = [means]
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    dist.broadcast_object_list(shared, last, group=parallel_state.get_pipeline_model_parallel_group())
    return shared[0]
