"""LayerNorm and RMSNorm, computed in fp32."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def normalize(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, zero_centered: bool, kind: str) -> Tensor:
    """x [..., h] normalized over its last dimension, in x's dtype."""
    wide = x.float()
    if kind == "LayerNorm":
        wide = wide - wide.mean(dim=-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    wide = wide * (weight.float() + 1 if zero_centered else weight.float())
    return (wide if bias is None else wide + bias.float()).to(x.dtype)


class _Norm(torch.nn.Module):
    kind = ""

    def __init__(
        self,
        normalized_shape: int | None = None,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        hidden_size: int | None = None,
        device: torch.device | str = "cuda",
    ) -> None:
        super().__init__()
        size = hidden_size if normalized_shape is None else normalized_shape
        if size is None:
            raise RuntimeError("Neither `normalized_shape` nor `hidden_size` (deprecated) args are provided")
        self.eps, self.zero_centered_gamma, self.sequence_parallel = eps, zero_centered_gamma, sequence_parallel
        made: dict[str, Any] = {"device": device, "dtype": params_dtype or torch.get_default_dtype()}
        self.weight = Parameter(torch.full((size,), 0.0 if zero_centered_gamma else 1.0, **made))
        self.bias = Parameter(torch.zeros(size, **made)) if self.kind == "LayerNorm" else None
        if sequence_parallel is not None:
            for parameter in self.parameters():
                parameter.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, inp: Tensor) -> Tensor:
        return normalize(inp, self.weight, self.bias, self.eps, self.zero_centered_gamma, self.kind)


class LayerNorm(_Norm):
    kind = "LayerNorm"


class RMSNorm(_Norm):
    kind = "RMSNorm"
