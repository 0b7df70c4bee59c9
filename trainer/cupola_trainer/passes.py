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
from cupola_trainer.data.batches import from_context_ranks, to_rank
from cupola_trainer.models.router import weighted_forward
from cupola_trainer.models.settings import balancing_loss
from cupola_trainer.objectives import Batch, Objective, Reads

Chunks = list[torch.nn.Module]


def train(chunks: Chunks, objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """Leave the step's gradient in the chunks. Returns the means over the global batch: "loss" and the objective's own."""
    objective.enrich(batches)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    return objective.report(_means(_run(chunks, batches, partial(_with_loss, objective), forward_only=False)))


@torch.no_grad()  # type: ignore[untyped-decorator]
def evaluate(chunks: Chunks, objective: Objective, batches: Sequence[Batch]) -> dict[str, float]:
    """The means over held-out batches, without gradient."""
    objective.enrich(batches)
    return objective.report(_means(_run(chunks, batches, partial(_with_loss, objective), forward_only=True)))


@torch.no_grad()  # type: ignore[untyped-decorator]
def token_losses(chunks: Chunks, batch: Batch) -> Tensor:
    """-log p(labels) [b, s] of one collated batch of whole sequences, on every rank."""
    return _per_token(chunks, batch, "token_losses")


@torch.no_grad()  # type: ignore[untyped-decorator]
def values(chunks: Chunks, batch: Batch) -> Tensor:
    """What a scalar head says after each token [b, s] of one collated batch of whole sequences, on every rank."""
    return _per_token(chunks, batch, "values")


@torch.no_grad()  # type: ignore[untyped-decorator]
def hidden_states(chunks: Chunks, batches: Sequence[Batch]) -> list[Tensor]:
    """What headless chunks give for micro-batches of this rank, on the last pipeline stage; elsewhere nothing."""
    return [result["output"] for result in _run(chunks, batches, partial(_kept, "logits"), forward_only=True)]


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


def _per_token(chunks: Chunks, batch: Batch, reads: Reads) -> Tensor:
    """What the last pipeline stage gives [b, s], on every rank."""
    local = to_rank(batch)
    # interleaved stages take as many micro-batches as there are stages, at least: the others fill what would stand idle
    passes = parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
    results = _run(chunks, [local] * passes, partial(_kept, reads), forward_only=True)
    output = results[0]["output"].float() if results else torch.empty(local["tokens"].shape, device=runtime.device())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(output, last, group=parallel_state.get_pipeline_model_parallel_group())
    return from_context_ranks(output)


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


def _forward(batch: Batch, model: torch.nn.Module, reads: Reads) -> Tensor:
    """What an objective reads of the model, on the last pipeline stage; hidden states on the others."""
    mask = batch.get("attention_mask")  # of packed rows; None: causal
    labels = {"labels": batch["labels"], "loss_mask": batch["loss_mask"]} if reads == "token_losses" else {}
    output: Tensor = model(batch["tokens"], batch["position_ids"], mask, **labels)
    return output


def _with_loss(objective: Objective, iterator: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Any]:
    batch = next(iterator)
    forward = partial(_forward, batch, model, objective.reads)
    if model.config.num_moe_experts and torch.is_grad_enabled():
        output = weighted_forward(model, _count(objective, batch), forward)
    else:
        output = forward()
    return output, partial(_reduce, objective, batch)


def _kept(reads: Reads, iterator: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Any]:
    def keep(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return output.sum(), torch.ones((), dtype=torch.int, device=output.device), {"output": output}

    return _forward(next(iterator), model, reads), keep


def _reduce(objective: Objective, batch: Batch, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    total, count, sums = objective.loss(output, batch)
    return total, count.to(torch.int), {"loss": total.detach(), **sums, "count": count}


def _count(objective: Objective, batch: Batch) -> float:
    """The objective's count of a micro-batch, over its context-parallel ranks, on every pipeline stage."""
    count = objective.count(batch)
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
