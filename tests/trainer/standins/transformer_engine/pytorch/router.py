"""The router's scores, choice and balancing loss."""

import torch
from torch import Tensor


def _scores(logits: Tensor, score_function: str) -> Tensor:
    assert logits.dtype != torch.float64, "Current TE does not support float64 router type"
    return logits.float().softmax(dim=-1) if score_function == "softmax" else logits.float().sigmoid()


def fused_topk_with_score_function(
    logits: Tensor,
    topk: int,
    use_pre_softmax: bool,
    num_groups: int | None,
    group_topk: int | None,
    scaling_factor: float | None,
    score_function: str,
    expert_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Each token's weights of its top k experts and zeros, and which these are: [tokens, experts] each."""
    if num_groups or group_topk or scaling_factor:
        raise NotImplementedError("the stand-in for Transformer Engine routes to single experts, unscaled")
    assert score_function == "sigmoid" or expert_bias is None
    late = score_function == "softmax" and not use_pre_softmax
    scores = logits.float() if late else _scores(logits, score_function)
    chosen = (scores if expert_bias is None else scores + expert_bias).topk(topk, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if late:
        weights = weights.softmax(dim=-1)
    elif score_function == "sigmoid" and topk > 1:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    routing_map = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, chosen, True)
    return torch.zeros_like(logits).scatter(-1, chosen, weights.to(logits.dtype)), routing_map


def fused_compute_score_for_moe_aux_loss(logits: Tensor, topk: int, score_function: str) -> tuple[Tensor, Tensor]:
    """Which experts a token's top k are, without bias, and its scores of all: [tokens, experts] each."""
    scores = _scores(logits, score_function)
    if score_function == "sigmoid":
        scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
    routing_map = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, scores.topk(topk, dim=-1).indices, True)
    return routing_map, scores


def fused_moe_aux_loss(
    probs: Tensor, tokens_per_expert: Tensor, total_num_tokens: int, num_experts: int, topk: int, coeff: float
) -> Tensor:
    assert isinstance(total_num_tokens, int), "the kernel takes a number, for which a tensor would have to be copied"
    loss = (probs.sum(dim=0) * tokens_per_expert).sum()
    return loss * (num_experts * coeff / (topk * total_num_tokens * total_num_tokens))
