"""From the last hidden states to logits, or straight to token losses."""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.kernels.linear_cross_entropy import Guess, linear_cross_entropy


class OutputLayer(ColumnParallelLinear):
    """Megatron's output layer with soft-capping; given labels, it goes on to the losses without holding the logits."""

    guess: Guess
    softcap: float | None

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        labels: Tensor | None = None,
        token_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """[s, b, h] -> logits [s, b, v]; with labels [b, s], losses [b, s]. The second is no bias.

        Args:
            token_weights: [b, s], what the objective will multiply the losses with, as far as it is known.
        """
        if labels is None:
            logits, bias = super().forward(input_, weight, runtime_gather_output)
            return (logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)), bias
        if self.sequence_parallel:
            input_ = gather_from_sequence_parallel_region(input_, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            input_ = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        losses = linear_cross_entropy(
            input_,
            self.weight if weight is None else weight,
            labels.t(),
            None if token_weights is None else token_weights.t(),
            group=self.tp_group,
            softcap=self.softcap,
            guess=self.guess,
            rows=runtime.rows_of_logits(),
        )
        return losses.t().contiguous(), None


class ModelWithLoss(GPTModel):
    """GPTModel whose logits may be soft-capped, and whose token losses come from the output layer itself."""

    def __init__(self, *args: Any, softcap: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.post_process:
            self.output_layer.__class__ = OutputLayer  # GPTModel makes its own, and wires it to the embedding
            self.output_layer.guess, self.output_layer.softcap = Guess(), softcap

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, labels: Tensor | None = None, loss_mask: Any = None, **kwargs: Any
    ) -> Tensor:
        if labels is None or not self.post_process:
            output: Tensor = super()._postprocess(hidden_states, *args, labels=labels, loss_mask=loss_mask, **kwargs)
            return output
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        losses, _ = self.output_layer(hidden_states, weight, labels=labels, token_weights=loss_mask)
        assert isinstance(losses, torch.Tensor)
        return losses
