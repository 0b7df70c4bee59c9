"""Matrix products."""

from typing import Any

import torch
from torch import Tensor


def general_gemm(
    A: Tensor,
    B: Tensor,
    workspace: Tensor,
    out_dtype: torch.dtype | None = None,
    *,
    layout: str = "TN",
    bias: Tensor | None = None,
    grad: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor | None, None, None]:
    """cuBLAS's product of column-major matrices: "TN" is B A^T, "NN" is B A, "NT" is B^T A for torch's row-major ones.

    Returns:
        the product, and the gradient of the bias if `grad`.
    """
    unsupported = {name: value for name, value in options.items() if value not in (None, False)}
    if unsupported or (grad and bias is not None):
        raise NotImplementedError(f"the stand-in for Transformer Engine multiplies without {unsupported or 'bias'}")
    left = B.t() if layout[1] == "T" else B
    right = A.t() if layout[0] == "T" else A
    product = left.float() @ right.float()
    if bias is not None:
        product = product + bias.float()
    return product.to(out_dtype or A.dtype), None, None, None
