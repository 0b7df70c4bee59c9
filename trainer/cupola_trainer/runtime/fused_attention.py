"""torch's fused attention with the log-sum-exp of its scores:
parts of one softmax computed apart can then be put together.

`scaled_dot_product_attention` chooses among these operations and throws the log-sum-exp away. Their backward passes
take any output and log-sum-exp: given those of the whole softmax, each yields its part of the whole's gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
ALIGNED = 32
"""Rows of the memory-efficient kernel's log-sum-exp come in multiples of this."""


def forward(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """[b, heads, q, d] and twice [b, heads, k, d] -> [b, heads, q, d], and log sum exp(scores) [b, heads,
    q] in fp32 or better.

    Args:
        causal: query i sees keys up to i; as many of both.
    """
    results: tuple[Any, ...]
    if not query.is_cuda:
        results = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    elif query.dtype is torch.float32:
        results = aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, causal, scale=scale)
    else:
        results = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)
    return results[0], results[1][..., : query.size(2)]


def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, where `output` and `logsumexp` are those of the whole softmax."""
    tensors = (gradient, query, key, value)
    gradients: tuple[Any, ...]
    if not query.is_cuda:
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *tensors, output, logsumexp, 0.0, causal, scale=scale
        )
        return gradients[0], gradients[1], gradients[2]
    unused = torch.zeros(2, dtype=torch.int64, device=query.device)  # state of dropout, which there is none of
    if query.dtype is torch.float32:
        padded = F.pad(logsumexp, (0, -query.size(2) % ALIGNED)).contiguous()
        gradients = aten._scaled_dot_product_efficient_attention_backward(
            *tensors, None, output, padded, unused[0], unused[1], 0.0, [True, True, True, False], causal, scale=scale
        )
    else:
        lengths = (None, None, query.size(2), key.size(2))
        gradients = aten._scaled_dot_product_flash_attention_backward(
            *tensors, output, logsumexp.contiguous(), *lengths, 0.0, causal, unused, unused[:0], scale=scale
        )
    return gradients[0], gradients[1], gradients[2]
