from ..absent import absent
from . import distributed, ops
from .attention import DotProductAttention
from .module.layernorm_linear import LayerNormLinear
from .module.linear import Linear
from .module.norms import LayerNorm, RMSNorm

GroupedLinear = absent("pytorch.GroupedLinear")
fp8_model_init = absent("pytorch.fp8_model_init")

__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "distributed",
    "fp8_model_init",
    "ops",
]
