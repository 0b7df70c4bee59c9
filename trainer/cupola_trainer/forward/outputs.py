"""Model outputs for whole sequences, without gradient, on every rank of any layout."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.data.batches import Batch, from_context_ranks, to_rank
from cupola_trainer.forward.schedule import Chunks, Reads, forward, run


@torch.no_grad()  # type: ignore[untyped-decorator]
def token_losses(chunks: Chunks, batch: Batch) -> Tensor:
    """-log p(labels) [b, s] of one collated batch of whole sequences, on every rank."""
    return _per_token(chunks, batch, "token_losses")


@torch.no_grad()  # type: ignore[untyped-decorator]
def values(chunks: Chunks, batch: Batch) -> Tensor:
    """A scalar head's output at each token [b, s] of one collated batch of whole sequences, on every rank."""
    return _per_token(chunks, batch, "values")


@torch.no_grad()  # type: ignore[untyped-decorator]
def hidden_states(chunks: Chunks, batches: Sequence[Batch]) -> list[Tensor]:
    """Outputs of headless chunks for this rank's micro-batches, on the last pipeline stage; empty elsewhere."""
    return [result["output"] for result in run(chunks, batches, partial(_keep_output, "logits"), forward_only=True)]


def _per_token(chunks: Chunks, batch: Batch, reads: Reads) -> Tensor:
    """Output of the last pipeline stage [b, s], on every rank."""
    local = to_rank(batch)
    # the interleaved schedule needs at least as many micro-batches as stages, so repeat the batch
    passes = parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
    results = run(chunks, [local] * passes, partial(_keep_output, reads), forward_only=True)
    output = results[0]["output"].float() if results else torch.empty(local["tokens"].shape, device=runtime.device())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(output, last, group=parallel_state.get_pipeline_model_parallel_group())
    return from_context_ranks(output)


def _keep_output(reads: Reads, iterator: Iterator[Batch], chunk: torch.nn.Module) -> tuple[Tensor, Any]:
    def keep(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return output.sum(), torch.ones((), dtype=torch.int, device=output.device), {"output": output}

    return forward(next(iterator), chunk, reads), keep
