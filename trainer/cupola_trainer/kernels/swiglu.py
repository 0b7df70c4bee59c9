"""SwiGLU whose gradient is written in place, where plain torch concatenates two halves."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

silu_backward = torch.ops.aten.silu_backward


def swiglu(x: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """silu(gate) * up (Shazeer 2020, equation 6), times an optional weight per token.

    Args:
        x: [..., 2 f]: gate and up.
        token_weights: [..., 1]; the output keeps the dtype of x.

    Returns:
        [..., f].
    """
    output: Tensor = _SwiGLU.apply(x) if token_weights is None else _WeightedSwiGLU.apply(x, token_weights)
    return output


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(x, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _of_input(gradients[0], *ctx.saved_tensors)


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token_weights: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(x, activated, token_weights)
        return (activated * up).mul_(token_weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, activated, token_weights = ctx.saved_tensors
        (gradient,) = gradients
        of_weights = (gradient * activated).mul_(x.chunk(2, dim=-1)[1]).sum(dim=-1, keepdim=True)
        of_input = _of_input((gradient * token_weights).to(x.dtype), x, activated)
        return of_input, of_weights.to(token_weights.dtype)


def _of_input(gradient: Tensor, x: Tensor, activated: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    result = torch.empty_like(x)
    of_gate, of_up = result.chunk(2, dim=-1)
    torch.mul(gradient, up, out=of_gate)
    silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
    torch.mul(gradient, activated, out=of_up)
    return result
