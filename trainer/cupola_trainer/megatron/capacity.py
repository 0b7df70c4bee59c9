"""Token dropping of experts with limited capacity, identical in every layout."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def keep_within_capacity(
    probs: Tensor, routing_map: Tensor, router_topk: int, capacity_factor: float, **unused: Any
) -> tuple[Tensor, Tensor]:
    """Probabilities and assignments [tokens, experts] after dropping the least probable ones above an expert's
    capacity.

    Capacity is `capacity_factor` times the even share of a whole micro-batch. Megatron's function compares only the
    tokens of one rank, and so drops different tokens if sequence or context parallelism splits a micro-batch.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_and_context_parallel_group()
    mine = probs.detach() * routing_map
    tokens, experts = mine.shape
    whole = mine
    if group.size() > 1:
        whole = torch.empty(group.size() * tokens, experts, dtype=mine.dtype, device=mine.device)
        dist.all_gather_into_tensor(whole, mine.contiguous(), group=group)
    capacity = math.ceil(len(whole) * router_topk / experts * capacity_factor)
    if capacity >= len(whole):
        return probs, routing_map
    least = torch.topk(whole, capacity, dim=0, sorted=True).values[-1]  # lowest probability that each expert keeps
    kept = routing_map & (mine >= least)
    return probs * kept, kept
