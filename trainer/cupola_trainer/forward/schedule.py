"""Run micro-batches through a model's chunks with Megatron's pipeline schedules."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from cupola_trainer.data.batches import Batch
from cupola_trainer.models.attention.texts import Texts
from cupola_trainer.models.precision import without_fp8

Chunks = list[torch.nn.Module]
Reads = Literal["token_losses", "values", "logits"]


def run(chunks: Chunks, batches: Sequence[Batch], step: Any, *, forward_only: bool) -> list[dict[str, Any]]:
    """Make one pass over this rank's micro-batches. Returns results on the last pipeline stage, [] elsewhere.
    Without gradients it computes in bf16, whatever training does.

    Args:
        step: Megatron's forward step: maps an iterator over batches and a chunk to its output and a loss function.
    """
    iterators = [iter(batches) for _ in chunks]
    shapes = {batch["tokens"].shape for batch in batches}
    for chunk in chunks:  # if set, pipeline stages exchange the shape of each micro-batch
        chunk.config.variable_seq_lengths = len(shapes) > 1
    rows, local_length = batches[0]["tokens"].shape
    with without_fp8(chunks) if forward_only else nullcontext():
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


def forward(batch: Batch, chunk: torch.nn.Module, reads: Reads) -> Tensor:
    """The model output selected by `reads` on the last pipeline stage, hidden states on the others."""
    packed = {"packed_seq_params": Texts.of(batch["segments"])} if "segments" in batch else {}
    labels = {"labels": batch["labels"], "loss_mask": batch["loss_mask"]} if reads == "token_losses" else {}
    output: Tensor = chunk(batch["tokens"], batch["position_ids"], None, **packed, **labels)
    return output
