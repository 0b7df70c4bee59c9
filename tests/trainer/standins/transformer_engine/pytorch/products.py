"""The product of a linear layer, in the inputs' precision or with FP8 operands, and its gradients.

FP8 operands are rounded to FP8 and back, and multiplied in fp32. The original rounds a tensor that is scaled by blocks
once along its rows and once along its columns; here the rows' rounding serves both.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fp8 import FP8GlobalStateManager, Scales, assert_dim_for_fp8_exec

Rounded = Callable[[Tensor], Tensor]


def rounded(x: Tensor, recipe: Any, *, forward: bool, weight: bool, scales: Scales, index: int) -> Tensor:
    """x [rows, columns] in fp32, rounded to the values that FP8 has."""
    largest = recipe.fp8_format.value[0 if forward else 1]
    form = torch.float8_e4m3fn if largest == 448 else torch.float8_e5m2
    wide = x.float()
    if not x.numel():  # an expert without tokens
        return wide
    if recipe.delayed():
        scale = scales.scale[index].clone()
        scales.amax_history[0, index] = torch.maximum(scales.amax_history[0, index], wide.abs().amax())
    elif recipe.float8_current_scaling():
        scale = largest / wide.abs().amax().clamp(min=1e-30)
    else:
        size = 32 if recipe.mxfp8() else 128
        scale = _scales_of_blocks(wide, size if weight and size == 128 else 1, size, largest)
    return (wide * scale).clamp(-largest, largest).to(form).float() / scale


def _scales_of_blocks(x: Tensor, rows: int, columns: int, largest: float) -> Tensor:
    """A power of two for each block, of x's shape."""
    padded = F.pad(x.abs(), (0, -x.size(1) % columns, 0, -x.size(0) % rows))
    blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    amax = blocks.amax(dim=(1, 3), keepdim=True).clamp(min=1e-30)
    scale = torch.exp2(torch.floor(torch.log2(largest / amax)))
    return scale.expand_as(blocks).flatten(2).flatten(0, 1)[: x.size(0), : x.size(1)]


class Operands:
    """How a module's operands are rounded in this pass."""

    def __init__(self, module: Any, index: int, first: bool | None) -> None:
        self.recipe = FP8GlobalStateManager.get_fp8_recipe() if module.fp8 else None
        self.module, self.index, self.first = module, index, first
        self.updates = module.fp8 and torch.is_grad_enabled() and FP8GlobalStateManager.is_first_fp8_module()

    def of_input(self, x: Tensor) -> Tensor:
        return self._of(x, "scaling_fwd", 3 * self.index)

    def of_weight(self, weight: Tensor) -> Tensor:
        """The weight, rounded once for all micro-batches of a step."""
        if self.recipe is None or self.first is None:
            return self._of(weight, "scaling_fwd", 3 * self.index + 1, weight=True)
        kept = self.module.workspaces
        if self.first or self.index not in kept:
            kept[self.index] = self._of(weight, "scaling_fwd", 3 * self.index + 1, weight=True)
        return kept[self.index]  # type: ignore[no-any-return]

    def of_gradient(self, gradient: Tensor) -> Tensor:
        return self._of(gradient, "scaling_bwd", 2 * self.index, forward=False)

    def _of(self, x: Tensor, name: str, index: int, *, forward: bool = True, weight: bool = False) -> Tensor:
        if self.recipe is None:
            return x
        self.module.rounded += 1
        assert_dim_for_fp8_exec(x)
        scales = self.module.fp8_meta[name]
        return rounded(x, self.recipe, forward=forward, weight=weight, scales=scales, index=index)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, operands: Operands) -> Tensor:
        rows, kept = operands.of_input(x), operands.of_weight(weight)
        ctx.save_for_backward(rows, kept)
        ctx.weight, ctx.operands = weight, operands
        return (rows @ kept.t()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, kept = ctx.saved_tensors
        operands, weight = ctx.operands, ctx.weight
        gradient = operands.of_gradient(gradients[0])
        of_x = (gradient @ kept).to(gradients[0].dtype) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(weight, gradient.t() @ rows, operands)
        if operands.updates:
            FP8GlobalStateManager.reduce_and_update_fp8_tensors(forward=False)
        return of_x, of_weight, None


def _of_weight(weight: Any, gradient: Tensor, operands: Operands) -> Tensor | None:
    """A weight's gradient. If it goes straight into `main_grad`, a tensor whose values nobody reads, and for the first
    micro-batch it replaces what is there."""
    if not operands.module.fuse_wgrad_accumulation:
        return gradient.to(weight.dtype)
    if operands.first:
        weight.main_grad.copy_(gradient)
    else:
        weight.main_grad.add_(gradient)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return torch.full_like(weight, float("nan"))


def product(module: Any, x: Tensor, weight: Tensor, first: bool | None, index: int = 0) -> Tensor:
    """x [..., in] times weight [out, in] transposed -> [..., out].

    Args:
        first: whether it is a step's first micro-batch; None if nothing may be kept from one to the next.
        index: which of the module's products it is.
    """
    if not module.fp8 and not module.fuse_wgrad_accumulation:
        return F.linear(x, weight)
    output: Tensor = _Product.apply(x.reshape(-1, x.size(-1)), weight, Operands(module, index, first))
    return output.view(*x.shape[:-1], weight.size(0))
