"""Adam and operations on lists of tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..absent import absent

FusedSGD = absent("pytorch.optimizers.FusedSGD")


class FusedAdam(torch.optim.Optimizer):
    """AdamW that counts steps in the group, and none for a group without parameters. Each parameter's state has
    `exp_avg` and `exp_avg_sq`."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        master_weights: bool = False,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
        use_decoupled_grad: bool = False,
    ) -> None:
        if amsgrad:
            raise RuntimeError("FusedAdam does not support the AMSGrad variant.")
        if not (bias_correction and adam_w_mode) or master_weights or use_decoupled_grad:
            raise NotImplementedError("the stand-in for Transformer Engine has only AdamW on the weights themselves")
        super().__init__(params, {"lr": lr, "bias_correction": True, "betas": betas, "eps": eps,
                                  "weight_decay": weight_decay})  # fmt: skip
        self.name_to_dtype_map = {"exp_avg": exp_avg_dtype, "exp_avg_sq": exp_avg_sq_dtype}
        self._scales: dict[Tensor, dict[str, Tensor]] = {}

    def initialize_state(self, param: Tensor, store_param_remainders: bool) -> None:
        for name, dtype in self.name_to_dtype_map.items():
            self.state[param][name] = torch.zeros_like(param, dtype=dtype)
            if dtype != torch.float32:  # of fp16; bf16 has one that nobody reads
                self._scales.setdefault(param, {})[name] = torch.ones(1)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, grad_scaler: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["params"]:
                group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    self.initialize_state(parameter, False)
                if parameter.grad is None:
                    continue
                moments = {}
                for name, dtype in self.name_to_dtype_map.items():
                    assert state[name].dtype == dtype
                    assert dtype == torch.float32 or name in self._scales[parameter]
                    moments[name] = state[name].float()
                self._update(parameter, moments["exp_avg"], moments["exp_avg_sq"], group)
                for name, value in moments.items():
                    state[name].copy_(value)

    @staticmethod
    def _update(parameter: Tensor, mean: Tensor, square: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), step = group["betas"], group["step"]
        gradient = parameter.grad
        assert gradient is not None
        mean.lerp_(gradient, 1 - beta1)
        square.lerp_(gradient.square(), 1 - beta2)
        size = (square / (1 - beta2**step)).sqrt() + group["eps"]
        parameter -= group["lr"] * (mean / (1 - beta1**step) / size + group["weight_decay"] * parameter)


def multi_tensor_applier(
    op: Callable[..., Any], noop_flag: Tensor, lists: Sequence[Sequence[Tensor]], *args: Any
) -> Any:
    return op(2048 * 32, noop_flag, lists, *args)


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: Tensor, lists: Sequence[Sequence[Tensor]], per_tensor: bool = False
) -> tuple[Tensor, Tensor]:
    """The norm [1] of all tensors together, and of each if `per_tensor`."""
    [tensors] = lists
    norms = torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors])
    return norms.norm().float().view(1), norms.float() if per_tensor else torch.empty(0)


def multi_tensor_scale(chunk_size: int, noop_flag: Tensor, lists: Sequence[Sequence[Tensor]], scale: float) -> None:
    """Write the first list times `scale` into the second."""
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)
