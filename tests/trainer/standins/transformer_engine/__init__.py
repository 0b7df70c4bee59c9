"""A stand-in for NVIDIA's Transformer Engine, for machines without a GPU.

Written from Transformer Engine 2.8's documentation and source, and from what megatron-core 0.16.1 calls in its
core/extensions/transformer_engine.py; no code is copied. It has Transformer Engine's contract (arguments, parameter
names, parallel modes, attributes of parameters, what each function refuses), computed by plain torch on the CPU.
Whatever we do not use is only a name that raises when called.

It differs on purpose in three places: it does not require CUDA; attention on context-parallel ranks gathers keys and
values instead of passing them around a ring, and takes no packed rows; and `attention.FUSED_DTYPES` can be extended,
since the real fused kernels know no fp32, in which alone figures can be compared closely.

Never install it. A process that wants it puts this package's parent folder first on its path.
"""

from . import common, pytorch

__version__ = "2.8.0"
__all__ = ["common", "pytorch"]
