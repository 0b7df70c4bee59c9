"""Linear layers of several experts in one operation: the rows of each expert times its own weight."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor


def grouped_linear(x: Tensor, counts: Sequence[int], weights: Sequence[Tensor]) -> Tensor:
    """Each expert's rows times its weight, transposed.

    A weight's gradient is added to its `main_grad` at once, if Megatron's data parallelism gave it one, without a
    temporary and another pass over it.

    Args:
        x: [tokens, in], sorted by expert.
        counts: tokens of each expert; their sum is the number of tokens.
        weights: [out, in] of each expert.

    Returns:
        [tokens, out].
    """
    output: Tensor = _GroupedLinear.apply(x, tuple(counts), *weights)
    return output


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: tuple[int, ...], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.counts = counts
        output = x.new_empty(x.size(0), weights[0].size(0))
        for (first, end), weight in zip(_bounds(counts), weights, strict=True):
            if end > first:
                torch.mm(x[first:end], weight.t(), out=output[first:end])
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        gradient = gradients[0]
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weights: list[Tensor | None] = []
        for number, ((first, end), weight) in enumerate(zip(_bounds(ctx.counts), weights, strict=True)):
            rows = gradient[first:end]
            if of_x is not None and end > first:
                torch.mm(rows, weight, out=of_x[first:end])
            of_weights.append(_of_weight(weight, rows, x[first:end]) if ctx.needs_input_grad[2 + number] else None)
        return of_x, None, *of_weights


def _of_weight(weight: Any, gradient: Tensor, x: Tensor) -> Tensor:
    """A weight's gradient; if that was added to its `main_grad`, a tensor whose values nobody reads."""
    main = getattr(weight, "main_grad", None)
    if main is None or main.dtype is not gradient.dtype:
        return gradient.t() @ x
    main.addmm_(gradient.t(), x)
    weight.grad_added_to_main_grad = True
    return torch.empty_like(weight)


def _bounds(counts: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(counts, initial=0)))
