"""RMSNorm under sequence and tensor parallelism."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

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


class JointNorm(torch.nn.Module):
    """RMSNorm over all heads together, of which a tensor-parallel rank has its part (OLMo 2, section 3.3)."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, *, heads: int, **unused: Any
    ) -> None:
        """`hidden_size` is a head's, `heads` their number over all ranks."""
        super().__init__()
        self.group = parallel_state.get_tensor_model_parallel_group()
        self.width, self.eps, self.zero_centered = heads * hidden_size, eps, config.layernorm_zero_centered_gamma
        self.weight = torch.nn.Parameter(
            torch.ones(self.width // self.group.size(), dtype=config.params_dtype, device=torch.get_default_device())
        )
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., heads of this rank, head size] -> same shape."""
        whole = x.flatten(-2).to(torch.promote_types(x.dtype, torch.float32))
        squares = whole.square().sum(dim=-1, keepdim=True)
        if self.group.size() > 1:
            squares = all_reduce(squares, group=self.group)
        weight = 1 + self.weight if self.zero_centered else self.weight
        normed = whole * torch.rsqrt(squares / self.width + self.eps) * weight
        return normed.to(x.dtype).view_as(x)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
        """The weight's part, along its only dimension."""
        return make_sharded_tensors_for_checkpoint(self.state_dict(), prefix, {"weight": 0}, sharded_offsets)
