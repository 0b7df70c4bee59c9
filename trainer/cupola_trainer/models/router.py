"""A router whose balancing losses have the same weight in every layout and objective."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, save_to_aux_losses_tracker, z_loss_func
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig


class Router(TopKRouter):
    """Megatron's top-k router with different weights for its auxiliary losses.

    A step's gradient is divided by the objective's count over the global batch. To compensate, Megatron multiplies an
    auxiliary loss by this rank's tokens, which is off by the tensor-parallel size under sequence parallelism, and by
    tokens / count for objectives that count responses or pairs. Here each micro-batch's loss is multiplied by its
    count, so the step's auxiliary loss is the mean over micro-batches, weighted like the main loss.
    """

    micro_batch_count: float | Tensor = 1.0
    """The objective's count in the current micro-batch, over its context-parallel ranks: see `weighted_forward`."""

    tokens_per_expert: Tensor | None = None
    """Assignments [num_experts] of this rank's tokens in training since the last `take_expert_load`."""

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route as Megatron does, and count the tokens of each expert."""
        probs, routing_map = super().routing(logits, padding_mask)
        if self.training and torch.is_grad_enabled():
            given = routing_map.sum(dim=0)
            self.tokens_per_expert = given if self.tokens_per_expert is None else self.tokens_per_expert + given
        return probs, routing_map

    def attach_and_log_load_balancing_loss(
        self,
        activation: Tensor,
        aux_loss_coeff: float,
        aux_loss: Tensor,
        aux_loss_name: str,
        reduce_group: Any,
        reduce_group_has_dp: bool = False,
        valid_token_count: int | Tensor | None = None,
        needs_dp_avg: bool = True,
    ) -> Tensor:
        """Attach `aux_loss`, this rank's share: the shares of the reduce group sum to the loss.

        The group is TP x CP for a micro-batch's loss. For the global loss it also includes the data-parallel ranks; the
        loss then covers all their micro-batches, assumed to have equal counts. Megatron-Core 0.16 and 0.17 say so by
        `reduce_group_has_dp`, 0.19 by `needs_dp_avg`.
        """
        reduce_group_has_dp = reduce_group_has_dp or not needs_dp_avg
        save_to_aux_losses_tracker(
            aux_loss_name,
            aux_loss / aux_loss_coeff,
            self.layer_number,
            self.config.num_layers,
            reduce_group=reduce_group,
            reduce_group_has_dp=reduce_group_has_dp,
        )
        micro_batches = parallel_state.get_data_parallel_world_size() if reduce_group_has_dp else 1
        return MoEAuxLossAutoScaler.apply(activation, aux_loss * self.micro_batch_count * micro_batches)

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attach the router z-loss (Zoph et al. 2022, equation 5), averaged over the TP x CP group's tokens."""
        if self.config.moe_z_loss_coeff is None or not self.training or not torch.is_grad_enabled():
            return logits
        share = self.config.moe_z_loss_coeff / self.tp_cp_group.size()
        z_loss = z_loss_func(logits, share, padding_mask=padding_mask)
        save_to_aux_losses_tracker("z_loss", z_loss / share, self.layer_number, self.config.num_layers)
        return MoEAuxLossAutoScaler.apply(logits, z_loss * self.micro_batch_count)


def weighted_forward(chunk: torch.nn.Module, count: Tensor, forward: Callable[[], Tensor]) -> Tensor:
    """Run `forward()` of one micro-batch through the chunk, weighting auxiliary losses by the objective's `count`, a
    number on the device.

    A pipeline stage runs other micro-batches between this one's forward and backward passes, and with `recompute: full`
    the auxiliary losses that matter are computed in backward. So the count is set again when the gradient of the output
    arrives, before anything in the chunk is recomputed.
    """
    routers = [module for module in chunk.modules() if isinstance(module, Router)]

    def give_count(_: Tensor | None = None) -> None:
        for router in routers:
            router.micro_batch_count = count

    give_count()
    output = forward()
    if output.requires_grad:
        output.register_hook(give_count)
    return output


def take_expert_load(chunks: Sequence[torch.nn.Module], model: ModelConfig, tokens: int) -> dict[str, float]:
    """Balance of expert usage since the last call. Collective: every rank must call it.

    Args:
        tokens: tokens of all steps since then, over all ranks.

    Returns:
        Per layer (from 1) `expert_load_layer_N`, the busiest expert's load over the mean (1 is even), and, if capacity
        is limited, `dropped_layer_N`, the share of dropped assignments.
    """
    moe = model.moe
    assert moe is not None
    given = torch.zeros(model.num_layers, moe.num_experts, dtype=torch.float64, device=runtime.device())
    for module in (module for chunk in chunks for module in chunk.modules()):
        if isinstance(module, Router) and module.tokens_per_expert is not None:
            given[module.layer_number - 1] += module.tokens_per_expert
            module.tokens_per_expert = None
    dist.all_reduce(given)  # each rank routes different tokens
    loads = {f"expert_load_layer_{i}": float(row.max() / row.mean()) for i, row in enumerate(given, 1) if row.sum()}
    if moe.capacity_factor is None:
        return loads
    wanted = tokens * moe.top_k
    return loads | {f"dropped_layer_{i}": float(1 - row.sum() / wanted) for i, row in enumerate(given, 1)}
