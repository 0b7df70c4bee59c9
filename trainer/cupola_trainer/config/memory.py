"""A forecast of the memory that training takes on a rank: from the settings alone, before anything starts.

Weights, gradients and optimizer are counted; what layers keep for the backward pass is counted for kernels that keep
their inputs and no attention scores. Buffers of the libraries and fragmentation come on top.
"""

from dataclasses import dataclass

from cupola_trainer.config.layout import LayoutConfig
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.config.training import BatchConfig, OptimizerConfig

FINGERPRINTED = False  # only refuses, computes nothing


@dataclass(frozen=True)
class Forecast:
    """Bytes on the rank that holds most, and what they depend on."""

    state: float
    """Weights, gradients, fp32 weights and moments."""
    per_token: float
    """What layers keep of each token of a micro-batch, over all micro-batches that are under way at once."""
    tokens: int
    """Of a micro-batch: micro_batch_size x sequence_length."""

    @property
    def total(self) -> float:
        return self.state + self.per_token * self.tokens

    def tokens_within(self, memory: float) -> int:
        """The tokens of a micro-batch that fit into `memory` bytes; 0 if not even the model does."""
        return max(0, int((memory - self.state) / self.per_token))


def forecast(
    model: ModelConfig,
    layout: LayoutConfig,
    batch: BatchConfig,
    optimizer: OptimizerConfig,
    bytes_per_value: int,
    *,
    frozen: bool = False,
) -> Forecast:
    """Memory of a rank of the first pipeline stage, which has most micro-batches under way.

    Args:
        bytes_per_value: of a weight or activation: 2 in bf16 and FP8, 4 in fp32.
        frozen: whether only adapters train, which count for nothing.
    """
    state = sum(
        count * (bytes_per_value if frozen else _bytes_per_weight(layout, optimizer, bytes_per_value, replicas))
        for count, replicas in _weights(model, layout)
    )
    layers = model.num_layers / layout.pp
    per_layer = _kept_per_token(model, layout) * bytes_per_value / layout.cp
    inputs = model.hidden_size * bytes_per_value / layout.cp / (layout.tp if layout.sp else 1)
    under_way = min(layout.pp, max(1, batch.num_microbatches(layout.dp)))
    if layout.recompute == "full":
        return Forecast(state, under_way * layers * inputs + per_layer, batch.micro_batch_size * batch.sequence_length)
    kept = 2 * per_layer if layout.offload_activations else under_way * layers * per_layer
    return Forecast(state, kept, batch.micro_batch_size * batch.sequence_length)


def _weights(model: ModelConfig, layout: LayoutConfig) -> list[tuple[float, float]]:
    """Weights on a rank, and over how many ranks the optimizer's state of each is split: of dense ones, and experts."""
    h, heads, groups, size = model.hidden_size, model.num_attention_heads, model.num_query_groups, model.head_size
    attention = h * (2 * heads + 2 * groups) * size
    moe = model.moe
    wide = (moe.shared_expert_ffn_hidden_size or 0) if moe else model.ffn_hidden_size
    apart = layout.pp == 1 and not (model.tie_embeddings or model.is_scalar)  # the output layer, on the last stage
    dense = (attention + 3 * h * wide) * model.num_layers / layout.pp + model.vocab_size * h * (1 + apart)
    weights: list[tuple[float, float]] = [(dense / layout.tp, layout.dp * layout.cp)]
    if moe:
        etp = layout.etp or (1 if layout.ep > 1 else layout.tp)
        experts = 3 * h * moe.expert_ffn_hidden_size * moe.num_experts * model.num_layers / layout.pp
        weights.append((experts / (layout.ep * etp), layout.tp * layout.cp * layout.dp / (layout.ep * etp)))
    return weights


def _bytes_per_weight(layout: LayoutConfig, optimizer: OptimizerConfig, weight: int, replicas: float) -> float:
    moments = 0 if layout.offload_optimizer else 2 * (2 if optimizer.states == "bf16" else 4)
    master = 0 if weight == 4 else 4
    return weight + 4 + (master + moments) / (replicas if layout.distributed_optimizer else 1)


def _kept_per_token(model: ModelConfig, layout: LayoutConfig) -> float:
    """Values that a layer keeps of a token: both norms' inputs and outputs, queries, keys and values before and after
    rotation, attention's output, both halves of the feed-forward layer's inner values and their product."""
    heads, groups, h = model.num_attention_heads, model.num_query_groups, model.hidden_size
    split = 4 * h / (layout.tp if layout.sp else 1)
    inner = (2 * (heads + 2 * groups) + heads) * model.head_size
    if not model.moe:
        return split + (inner + 3 * model.ffn_hidden_size) / layout.tp
    moe = model.moe
    shared = 3 * (moe.shared_expert_ffn_hidden_size or 0)
    ranks = layout.tp if layout.sp else 1  # of which each has a part of the tokens
    routed = moe.top_k * (2 * h + 3 * moe.expert_ffn_hidden_size) / ranks
    return split + (inner + shared) / layout.tp + routed
