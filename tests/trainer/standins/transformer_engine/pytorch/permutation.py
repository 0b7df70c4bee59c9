"""Sorting tokens by expert and back. The second result of `moe_permute` is opaque, and only `moe_unpermute` reads it."""

import torch
from torch import Tensor


def moe_permute(
    inp: Tensor, routing_map: Tensor, num_out_tokens: int = -1, max_token_num: int = -1, map_type: str = "mask"
) -> tuple[Tensor, Tensor]:
    """[tokens, h] -> [num_out_tokens, h], sorted by expert and then by token."""
    if map_type != "mask" or max_token_num != -1:
        raise NotImplementedError("the stand-in for Transformer Engine permutes by masks only")
    rows = routing_map.t().nonzero()[:, 1]
    assert num_out_tokens in (-1, len(rows)), "the kernel would leave the rest of the output unset"
    return inp[rows], rows


def moe_permute_with_probs(
    inp: Tensor, probs: Tensor, routing_map: Tensor, num_out_tokens: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    output, rows = moe_permute(inp, routing_map, int(num_out_tokens))
    return output, probs.t().masked_select(routing_map.t().bool()), rows


def moe_unpermute(
    inp: Tensor, row_id_map: Tensor, merging_probs: Tensor | None = None, restore_shape: torch.Size | None = None
) -> Tensor:
    """[rows, h] -> restore_shape: the sum of each token's rows."""
    assert merging_probs is None
    assert restore_shape is not None
    total = inp.new_zeros(restore_shape, dtype=torch.float32)
    return total.index_add(0, row_id_map, inp.float()).to(inp.dtype)


def moe_sort_chunks_by_index(inp: Tensor, split_sizes: Tensor, sorted_index: Tensor) -> Tensor:
    """The chunks of inp, of these sizes, in another order."""
    chunks = inp.split(split_sizes.tolist())
    return torch.cat([chunks[number] for number in sorted_index.tolist()])


def moe_sort_chunks_by_index_with_probs(
    inp: Tensor, probs: Tensor, split_sizes: Tensor, sorted_index: Tensor
) -> tuple[Tensor, Tensor]:
    sort = moe_sort_chunks_by_index
    return sort(inp, split_sizes, sorted_index), sort(probs, split_sizes, sorted_index)
