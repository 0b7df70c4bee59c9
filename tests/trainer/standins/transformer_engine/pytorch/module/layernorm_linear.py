"""A norm and a linear layer in one module."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .linear import LinearBase
from .norms import normalize


class LayerNormLinear(LinearBase):
    """A linear layer of normalized inputs. Under sequence parallelism each rank normalizes its part of the sequence, so
    the norm's gradients must be summed over the group: they are marked for it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        *,
        normalization: str = "LayerNorm",
        zero_centered_gamma: bool = False,
        return_layernorm_output: bool = False,
        **options: Any,
    ) -> None:
        assert normalization in ("LayerNorm", "RMSNorm"), "Unsupported normalization type!"
        if return_layernorm_output:
            raise NotImplementedError("the stand-in for Transformer Engine does not return the norm's output")
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        super().__init__(in_features, out_features, **options)

    def _norm_parameters(self) -> None:
        start = 0.0 if self.zero_centered_gamma else 1.0
        self.layer_norm_weight = Parameter(torch.full((self.in_features,), start, **self.made))
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        self.layer_norm_bias = None
        if self.normalization == "LayerNorm":
            self.layer_norm_bias = Parameter(torch.zeros(self.in_features, **self.made))
            self.layer_norm_bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, inp: Tensor, is_first_microbatch: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._prepare(inp)
        assert inp.size(-1) == self.in_features, "GEMM not possible"
        weight, bias = self.layer_norm_weight, self.layer_norm_bias
        normal = normalize(inp, weight, bias, self.eps, self.zero_centered_gamma, self.normalization)
        return self._multiply(normal, is_first_microbatch)
