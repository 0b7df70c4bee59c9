"""Initial weights that depend only on the seed and the weight's name, so they are the same in every layout."""

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from cupola_trainer.config import ModelConfig

RESIDUAL_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")


def initialize(chunks: Sequence[GPTModel], model: ModelConfig, seed: int) -> None:
    """Set norms to 1, biases to 0, matrices to N(0, init_std), scaled by 1/sqrt(2 * layers) if they write to the
    residual stream (GPT-2, section 2.3).

    Each tensor (per layer and expert) is drawn whole from its own seed; a rank keeps its shard.
    """
    with torch.no_grad():
        for shard in sharded_tensors(chunks):
            shard.data.copy_(_draw(shard, model, seed))


def sharded_tensors(chunks: Sequence[GPTModel]) -> Iterator[ShardedTensor]:
    """Every parameter of this rank as a shard of the checkpoint's global tensor; `data` is the weight itself."""
    metadata = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    for chunk in chunks:
        for entry in nested_values(chunk.sharded_state_dict(metadata=metadata)):
            if isinstance(entry, ShardedTensorFactory):  # SwiGLU's gate and up projections, one parameter here
                entry = entry.build()
            for shard in nested_values(entry) if isinstance(entry, dict | list) else [entry]:
                if isinstance(shard, ShardedTensor):
                    yield shard


def _draw(shard: ShardedTensor, model: ModelConfig, seed: int) -> Tensor:
    stacked = shard.prepend_axis_num  # leading axes of the global tensor: layer, expert
    shape, offset = shard.global_shape[stacked:], shard.global_offset[stacked:]
    if shard.key.endswith("norm_weight") or shard.key.endswith("norm.weight"):
        return torch.full(shard.local_shape, 0.0 if model.zero_centered_norm else 1.0)
    if shard.key.endswith(".bias"):
        return torch.zeros(shard.local_shape)
    std = model.init_std
    if shard.key.endswith(RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * model.num_layers)
    name = f"{seed}/{shard.key}/{'/'.join(map(str, shard.global_offset[:stacked]))}"
    generator = torch.Generator().manual_seed(_seed_of(name))
    whole = torch.randn(shape, generator=generator) * std
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shard.local_shape, strict=True))]


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
