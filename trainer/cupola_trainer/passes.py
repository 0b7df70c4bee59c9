"""Forward and backward through Megatron's pipeline schedules, and the sums that come out of them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker, track_moe_metrics
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig
from cupola_trainer.data.batches import to_rank
from cupola_trainer.models.router import Router
from cupola_trainer.models.settings import balancing_loss
from cupola_trainer.objectives import Batch, Objective

Chunks = list[torch.nn.Module]


def train(chunks: Chunks, objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """Leave the step's gradient in the chunks. Returns the means over the global batch: "loss" and the objective's own."""
    for chunk in chunks:
        chunk.zero_grad_buffer()
    return _means(_run(chunks, batches, partial(_with_loss, objective), forward_only=False))


@torch.no_grad()  # type: ignore[untyped-decorator]
def evaluate(chunks: Chunks, objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """The means over held-out batches, without gradient."""
    return _means(_run(chunks, batches, partial(_with_loss, objective), forward_only=True))


@torch.no_grad()  # type: ignore[untyped-decorator]
def token_losses(chunks: Chunks, batch: Batch) -> Tensor:
    """-log p(labels) [b, s] of one collated batch, on every rank. Context parallelism is not gathered: cp is 1."""
    results = _run(chunks, [to_rank(batch)], _with_token_losses, forward_only=True)
    losses = results[0]["token_losses"] if results else torch.empty(batch["tokens"].shape, device=runtime.device())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(losses, last, group=parallel_state.get_pipeline_model_parallel_group())
    return losses


def aux_losses(model: ModelConfig, micro_batches: int) -> dict[str, float]:
    """The experts' balancing loss since the last call, unweighted: its mean over layers and micro-batches (1 is balanced).
    Empty where experts are balanced without a loss."""
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


def _run(chunks: Chunks, batches: Sequence[Batch], step: Any, *, forward_only: bool) -> list[dict[str, Any]]:
    """One pass over the micro-batches. Results are on the last pipeline stage; elsewhere the list is empty."""
    iterators = [iter(batches) for _ in chunks]
    rows, local_length = batches[0]["tokens"].shape
    results: list[dict[str, Any]] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        seq_length=local_length * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=rows,
        forward_only=forward_only,
    )
    return results


def _forward(batch: Batch, model: torch.nn.Module) -> Tensor:
    mask = batch.get("attention_mask")  # of packed conversations; None: causal
    output: Tensor = model(
        batch["tokens"], batch["position_ids"], mask, labels=batch["labels"], loss_mask=batch["loss_mask"]
    )
    return output


def _with_loss(objective: Objective, iterator: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Any]:
    batch = next(iterator)
    if model.config.num_moe_experts and torch.is_grad_enabled():
        Router.micro_batch_count = _count(objective, batch)
    return _forward(batch, model), partial(_reduce, objective, batch)


def _with_token_losses(iterator: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Any]:
    def keep(losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return losses.sum(), torch.ones((), dtype=torch.int, device=losses.device), {"token_losses": losses.float()}

    return _forward(next(iterator), model), keep


def _reduce(objective: Objective, batch: Batch, losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    total, count, sums = objective.loss(losses, batch)
    return total, count.to(torch.int), {"loss": total.detach(), **sums, "count": count}


def _count(objective: Objective, batch: Batch) -> float:
    """The objective's count of a micro-batch, over its context-parallel ranks, on every pipeline stage."""
    _, count, _ = objective.loss(torch.zeros_like(batch["loss_mask"]), batch)
    if parallel_state.get_context_parallel_world_size() > 1:
        count = count.clone()
        dist.all_reduce(count, group=parallel_state.get_context_parallel_group())
    return float(count)


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
