from ..absent import absent
from . import distributed, ops
from .attention import DotProductAttention
from .fp8 import fp8_autocast
from .module.fp8_padding import Fp8Padding, Fp8Unpadding
from .module.grouped_linear import GroupedLinear
from .module.layernorm_linear import LayerNormLinear
from .module.linear import Linear
from .module.norms import LayerNorm, RMSNorm

fp8_model_init = absent("pytorch.fp8_model_init")

__all__ = [
    "DotProductAttention",
    "Fp8Padding",
    "Fp8Unpadding",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "distributed",
    "fp8_autocast",
    "fp8_model_init",
    "ops",
]
