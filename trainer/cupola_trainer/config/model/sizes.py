"""Parameter counts from the configuration alone. Imports no torch."""

from cupola_trainer.config.model.architecture import ModelConfig

FINGERPRINTED = False  # only counts, for logs and reports


def parameter_count(model: ModelConfig) -> int:
    """Total parameters over all ranks; tied embeddings count once."""
    h, queries = model.hidden_size, model.num_attention_heads * model.head_size
    qkv = queries + 2 * model.num_query_groups * model.head_size
    layer = h * qkv + (qkv if model.qkv_bias else 0) + queries * h
    layer += 2 * h * (model.pre_norm + model.post_norm)
    if model.moe:
        layer += model.moe.num_experts * (h + 3 * h * model.moe.expert_ffn_hidden_size)
        if model.moe.shared_expert_ffn_hidden_size:
            layer += h + 3 * h * model.moe.shared_expert_ffn_hidden_size
    else:
        layer += 3 * h * model.ffn_hidden_size
    if model.qk_norm:
        layer += 2 * model.head_size
    if model.joint_qk_norm:
        layer += queries + model.num_query_groups * model.head_size
    output = h if model.is_scalar else 0 if model.tie_embeddings else model.vocab_size * h
    return model.num_layers * layer + h + model.vocab_size * h + output


def active_parameters(model: ModelConfig) -> int:
    """Parameters used per token: all but the experts it is not routed to."""
    total = parameter_count(model)
    if model.moe is None:
        return total
    expert = 3 * model.hidden_size * model.moe.expert_ffn_hidden_size
    return total - model.num_layers * (model.moe.num_experts - model.moe.top_k) * expert
