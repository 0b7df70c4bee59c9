"""Several linear layers in one operation: the rows of each times its own weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..distributed import set_tensor_model_parallel_attributes
from ..products import product
from .base import TransformerEngineBaseModule


class GroupedLinear(TransformerEngineBaseModule):
    """y_i = x_i W_i^T for rows [sum(m_splits), in] sorted by i. `tp_size` only sets the shapes: whoever calls it
    communicates."""

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        fuse_wgrad_accumulation: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        rng_tracker_name: str | None = None,
        init_method: Callable[[Tensor], Any] | None = None,
        bias: bool = True,
        return_bias: bool = False,
        params_dtype: torch.dtype | None = None,
        parallel_mode: str | None = None,
        device: torch.device | str = "cuda",
        ub_name: str | None = None,
    ) -> None:
        super().__init__()
        if bias or return_bias:
            raise NotImplementedError("the stand-in for Transformer Engine groups linear layers without bias")
        assert parallel_mode in (None, "column", "row"), f"parallel_mode {parallel_mode} not supported"
        self.num_gemms, self.fuse_wgrad_accumulation = num_gemms, fuse_wgrad_accumulation
        self.parallel_mode, self.use_bias = parallel_mode, bias
        self._join(tp_group, tp_size)
        self.in_features, self.out_features = in_features, out_features
        if parallel_mode == "column":
            self.out_features //= self.tp_size
        elif parallel_mode == "row":
            self.in_features //= self.tp_size
        made: dict[str, Any] = {"device": device, "dtype": params_dtype or torch.get_default_dtype()}
        for number in range(num_gemms):
            weight = Parameter(torch.empty(self.out_features, self.in_features, **made))
            (init_method or (lambda weight: torch.nn.init.normal_(weight, std=0.023)))(weight)
            set_tensor_model_parallel_attributes(weight, True, 1 if parallel_mode == "row" else 0, 1)
            self.register_parameter(f"weight{number}", weight)

    def forward(self, inp: Tensor, m_splits: list[int], is_first_microbatch: bool | None = None) -> Tensor:
        assert len(m_splits) == self.num_gemms, "Number of splits should match number of GEMMs."
        assert sum(m_splits) == inp.size(0)
        self._prepare(inp, self.num_gemms)
        parts = [
            product(self, rows, getattr(self, f"weight{number}"), is_first_microbatch, number)
            for number, rows in enumerate(inp.split(m_splits))
        ]
        return torch.cat(parts)
