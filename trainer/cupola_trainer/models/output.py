"""Output layers: from the last hidden states to logits, to token losses, or to one number per token."""

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import make_sharded_tensor_for_checkpoint
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.kernels.linear_cross_entropy import Guess, linear_cross_entropy

SCORE = "score.weight"
"""Name of a scalar head's weight, in checkpoints and transformers folders."""


class OutputLayer(ColumnParallelLinear):
    """Megatron's output layer with soft-capping; given labels, it computes losses without materializing the logits."""

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
        """[s, b, h] -> logits [s, b, v]; with labels [b, s], losses [b, s]. The second output is the (absent) bias.

        Args:
            token_weights: [b, s], the objective's weights of the losses, if known; where a weight is 0, the loss is 0
            and
                its logits are not computed.
        """
        if labels is None:
            logits, bias = super().forward(input_, weight, runtime_gather_output)
            return (logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)), bias
        if self.sequence_parallel:
            input_ = gather_from_sequence_parallel_region(input_, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            input_ = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        weight = self.weight if weight is None else weight
        losses = linear_cross_entropy(
            input_,
            weight,
            labels.t(),
            None if token_weights is None else token_weights.t(),
            group=self.tp_group,
            softcap=self.softcap,
            guess=self.guess,
            rows=runtime.rows_of_logits(len(weight)),
        )
        return losses.t().contiguous(), None


class ScalarHead(torch.nn.Module):
    """One number per token, without bias, like the head of transformers' sequence classification. Replicated on every
    tensor-parallel rank.

    Its checkpoint key is "score.weight" [1, h].
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.sequence_parallel = config, config.sequence_parallel
        self.weight = torch.nn.Parameter(torch.empty(1, config.hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = (
            config.sequence_parallel
        )  # each rank has the gradient of its part of the sequence

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, None]:
        """[s, b, h] -> values [s, b, 1] in fp32, for the whole sequence also under sequence parallelism."""
        values = torch.nn.functional.linear(input_.float(), self.weight.float())
        if self.sequence_parallel:  # every rank computes the same from here on, so a rank's gradient is its slice
            values = gather_from_sequence_parallel_region(values, tensor_parallel_output_grad=False)
        return values, None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        group = (metadata or {}).get("dp_cp_group")
        shard = make_sharded_tensor_for_checkpoint(self.weight, SCORE, dp_cp_group=group)
        return {f"{prefix}weight": shard}


class ModelWithLoss(GPTModel):
    """GPTModel whose output layer computes token losses, with optional soft-capping, or whose head is scalar. While
    `headless` is set, it returns the last hidden states."""

    def __init__(self, *args: Any, softcap: float | None = None, scalar: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scalar, self.headless = scalar, False
        if not self.post_process:
            return
        if scalar:
            self.output_layer = ScalarHead(self.config)
        else:
            self.output_layer.__class__ = OutputLayer  # GPTModel creates the layer and ties it to the embedding
            self.output_layer.guess, self.output_layer.softcap = Guess(), softcap

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits [b, s, v / tp] from a headless model's hidden states, on the last stage."""
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(hidden_states, weight)
        return logits.transpose(0, 1)  # type: ignore[no-any-return]

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, labels: Tensor | None = None, loss_mask: Any = None, **kwargs: Any
    ) -> Tensor:
        if self.headless:
            return hidden_states
        if self.scalar and self.post_process:
            values, _ = self.output_layer(hidden_states)
            return values.squeeze(-1).t().contiguous()  # type: ignore[no-any-return]
        if labels is None or not self.post_process:
            output: Tensor = super()._postprocess(hidden_states, *args, labels=labels, loss_mask=loss_mask, **kwargs)
            return output
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        losses, _ = self.output_layer(hidden_states, weight, labels=labels, token_weights=loss_mask)
        assert isinstance(losses, torch.Tensor)
        return losses
