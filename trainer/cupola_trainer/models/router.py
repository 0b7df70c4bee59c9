"""The router, with balancing losses that weigh the same in every layout and under every objective."""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, save_to_aux_losses_tracker, z_loss_func
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


class Router(TopKRouter):
    """Megatron's top-k router; only the weight of its auxiliary losses differs.

    The gradient of a step is divided by the objective's count over the global batch. Megatron multiplies an auxiliary
    loss by this rank's tokens to make up for it, which is wrong by the size of the tensor-parallel group under sequence
    parallelism, and by tokens / count where an objective counts answers or pairs. Here each micro-batch's loss is
    multiplied by that micro-batch's count, so that the step holds their mean, weighted as the main loss is.
    """

    micro_batch_count: float = 1.0
    """The objective's count in the current micro-batch, over its context-parallel ranks. Set on the class before forward."""

    def attach_and_log_load_balancing_loss(
        self,
        activation: Tensor,
        aux_loss_coeff: float,
        aux_loss: Tensor,
        aux_loss_name: str,
        reduce_group: Any,
        reduce_group_has_dp: bool = False,
        valid_token_count: int | Tensor | None = None,
    ) -> Tensor:
        """`aux_loss` is this rank's share: the shares of the TP x CP group sum to the micro-batch's loss."""
        save_to_aux_losses_tracker(
            aux_loss_name,
            aux_loss / aux_loss_coeff,
            self.layer_number,
            self.config.num_layers,
            reduce_group=reduce_group,
            reduce_group_has_dp=reduce_group_has_dp,
        )
        return MoEAuxLossAutoScaler.apply(activation, aux_loss * Router.micro_batch_count)

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The router z-loss (Zoph et al. 2022, equation 5), its mean over the TP x CP group's tokens."""
        if self.config.moe_z_loss_coeff is None or not self.training or not torch.is_grad_enabled():
            return logits
        share = self.config.moe_z_loss_coeff / self.tp_cp_group.size()
        z_loss = z_loss_func(logits, share, padding_mask=padding_mask)
        save_to_aux_losses_tracker("z_loss", z_loss / share, self.layer_number, self.config.num_layers)
        return MoEAuxLossAutoScaler.apply(logits, z_loss * Router.micro_batch_count)
