"""FP8 tensors, only as a name that no tensor is an instance of."""

from ..absent import absent

Float8Tensor = absent("pytorch.float8_tensor.Float8Tensor")
