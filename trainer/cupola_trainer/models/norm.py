"""An RMSNorm for sequence parallelism."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from cupola_trainer import runtime
from cupola_trainer.kernels.rms_norm import rms_norm


class TorchRMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm. Under sequence parallelism each rank sees part of the tokens, so gradients are summed over
    TP."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel
        self.zero_centered = config.layernorm_zero_centered_gamma

    def forward(self, x: Tensor) -> Tensor:
        if not self.zero_centered:
            plain = x.dtype is not torch.float32 or runtime.has_fused_kernels()
            return super().forward(x) if plain else rms_norm(x, self.weight, self.eps or 0.0)
        # in fp32, as transformers' Gemma2RMSNorm: 1 + weight would lose the weight's low bits in bf16
        return F.rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).type_as(x)
