"""torch's fused attention with the log-sum-exp of its scores, which allows combining separately computed parts of one
softmax.

`scaled_dot_product_attention` dispatches to these operations but discards the log-sum-exp. Their backward passes accept
any output and log-sum-exp: given those of the whole softmax, each yields its part of the whole gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
ALIGNED = 32
"""The memory-efficient kernel pads its log-sum-exp to a multiple of this."""


def forward(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """[b, heads, q, d] and twice [b, heads, k, d] -> [b, heads, q, d], and log sum exp(scores) [b, heads,
    q] in fp32 or better.

    Args:
        causal: query i attends to keys up to i; requires equally many of both.
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
    """Gradients of query, key and value, given the whole softmax's `output` and `logsumexp`."""
    tensors = (gradient, query, key, value)
    gradients: tuple[Any, ...]
    if not query.is_cuda:
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *tensors, output, logsumexp, 0.0, causal, scale=scale
        )
        return gradients[0], gradients[1], gradients[2]
    unused = torch.zeros(2, dtype=torch.int64, device=query.device)  # dropout state, unused
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
