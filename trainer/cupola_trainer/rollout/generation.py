"""Batched generation with the model that is being trained: no second engine, no second copy of the weights."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model

from cupola_platform.errors import ConfigError
from cupola_trainer.rollout.batch import Batch, Completion
from cupola_trainer.rollout.sampling import Sampling

STOP_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>")


@torch.no_grad()  # type: ignore[untyped-decorator]
def generate(
    chunks: Sequence[torch.nn.Module],
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Continue every prompt until a stop token, `max_new_tokens` or the model's longest sequence.

    Every rank calls this with the same prompts and gets all completions; data-parallel ranks share the work, and the
    ranks of a tensor- or expert-parallel group step together. What is drawn for prompt i depends on (seed, i) and on
    its own logits, not on the batch that it is in.

    Args:
        chunks: the model, laid out without pipeline, context or sequence parallelism.
        prompts: token ids.
        batch_size: sequences in one forward pass of a rank.
        progress: called with the number of prompts done so far, over all ranks.

    Raises:
        ConfigError: a prompt that is empty or leaves no room for an answer, or a layout that cannot generate.
    """
    model = _generating_model(chunks)
    _check_prompts(prompts, model.max_sequence_length)
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    rounds = -(-len(prompts) // (batch_size * ranks))
    mine = _batches(prompts, rounds * ranks)[rank::ranks]
    stops = stop_ids(tokenizer)
    done: dict[int, Completion] = {}
    was_training = model.training
    model.eval()
    for number, indices in enumerate(mine, start=1):
        batch = Batch(model, [prompts[i] for i in indices], indices, sampling, seed, len(tokenizer), stops)
        done |= dict(zip(indices, batch.complete(), strict=True))
        if progress:
            progress(len(prompts) * number // rounds)
    model.train(was_training)
    return _gathered(done, len(prompts))


def _batches(prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    """Indices of the prompts in `count` batches of one size (give or take one), like lengths and equal prompts together."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), prompts[index]))
    return [part.tolist() for part in np.array_split(np.array(order, dtype=np.int64), count)] if count else []


def stop_ids(tokenizer: Any) -> list[int]:
    """The tokens at which generation ends: the end of a turn and the end of a document, by their names in each family."""
    vocabulary = tokenizer.get_vocab()
    stops = [vocabulary[token] for token in STOP_TOKENS if token in vocabulary]
    end = tokenizer.eos_token_id
    return stops if end is None or end in stops else [*stops, end]


def _generating_model(chunks: Sequence[torch.nn.Module]) -> Any:
    config = chunks[0].config
    if config.pipeline_model_parallel_size > 1 or config.context_parallel_size > 1 or config.sequence_parallel:
        raise ConfigError("Generation needs a layout with pp=1, cp=1 and sp=false. Load the checkpoint in such a one.")
    return unwrap_model(chunks[0])


def _check_prompts(prompts: Sequence[list[int]], longest: int) -> None:
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < longest:
            raise ConfigError(
                f"Prompt {number} has {len(prompt)} tokens. It must have at least 1 and leave room for an answer within "
                f"the model's {longest} positions."
            )


def _gathered(done: dict[int, Completion], count: int) -> list[Completion]:
    parts: list[dict[int, Completion]] = [{}] * parallel_state.get_data_parallel_world_size()
    dist.all_gather_object(parts, done, group=parallel_state.get_data_parallel_group())
    everything = {index: completion for part in parts for index, completion in part.items()}
    return [everything[index] for index in range(count)]
