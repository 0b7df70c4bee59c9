"""Batched generation with the model in training, without a second engine or copy of the weights."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from cupola_platform.errors import ConfigError
from cupola_trainer.data.tokenizer_folders import stop_ids
from cupola_trainer.generation.batch import Batch, Completion
from cupola_trainer.generation.sampling import Sampling
from cupola_trainer.generation.stages import generating


@torch.no_grad()  # type: ignore[untyped-decorator]
def generate(
    chunks: Sequence[torch.nn.Module],
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    stops: Sequence[int] | None = None,
    vocabulary: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Continue every prompt until a stop token, `max_new_tokens` or the model's longest sequence.

    Called on every rank with the same prompts; returns all completions. Works in any training layout: prompts are
    divided over data- and context-parallel ranks, while the ranks of a tensor-, expert- or pipeline-parallel group step
    together. The tokens sampled for prompt i depend on (seed, i) and its logits, not on its batch.

    Args:
        chunks: the model, with or without data-parallel wrapping.
        tokenizer: provides the defaults of `stops` and `vocabulary`.
        prompts: token ids.
        stops: tokens that end a response; None for the tokenizer's.
        vocabulary: only tokens below this are sampled; None for the tokenizer's size.
        batch_size: sequences per forward pass on a rank.
        progress: called with the number of prompts done so far, over all ranks.

    Raises:
        ConfigError: a prompt is empty or leaves no room for a response.
    """
    stops = stop_ids(tokenizer) if stops is None else stops
    vocabulary = len(tokenizer) if vocabulary is None else vocabulary
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    ranks, rank = group.size(), group.rank()
    rounds = -(-len(prompts) // (batch_size * ranks))
    mine = _batches(prompts, rounds * ranks)[rank::ranks]
    done: dict[int, Completion] = {}
    with generating(chunks) as stages:
        check_prompts(prompts, stages.max_sequence_length)
        for number, indices in enumerate(mine, start=1):
            batch = Batch(stages, [prompts[i] for i in indices], indices, sampling, seed, vocabulary, stops)
            done |= dict(zip(indices, batch.complete(), strict=True))
            if progress:
                progress(len(prompts) * number // rounds)
    return _gathered(done, len(prompts), group)


def _batches(prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """Prompt indices in `count` batches of equal size (up to one), with similar lengths and equal prompts together."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), prompts[index]))
    return [part.tolist() for part in np.array_split(np.array(order, dtype=np.int64), count)] if count else []


def check_prompts(prompts: Sequence[list[int]], longest: int) -> None:
    """Refuse a prompt that is empty or leaves no room for a response.

    Raises:
        ConfigError: gives the prompt's number.
    """
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < longest:
            raise ConfigError(
                f"Prompt {number} has {len(prompt)} tokens. It must have at least 1 and leave room for a response "
                f"within the model's {longest} positions. {'Shorten' if prompt else 'Lengthen'} it."
            )


def _gathered(done: dict[int, Completion], count: int, group: dist.ProcessGroup) -> list[Completion]:
    parts: list[dict[int, Completion]] = [{}] * group.size()
    dist.all_gather_object(parts, done, group=group)
    everything = {index: completion for part in parts for index, completion in part.items()}
    return [everything[index] for index in range(count)]
