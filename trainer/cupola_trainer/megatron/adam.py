"""AdamW with the calling convention of Transformer Engine's and Apex's FusedAdam, in plain torch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class FusedAdam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) that counts steps per parameter group, not per parameter.

    A checkpoint then holds one step count, and two moments per weight, as with Transformer Engine's. As there, a group
    without parameters counts none, and moments may be stored in bf16: the step widens and rounds them.
    """

    on_host = False
    """Whether the moments stay in the host's memory."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        adam_w_mode: bool = True,
        **unused: Any,
    ) -> None:
        if not (bias_correction and adam_w_mode):
            raise NotImplementedError("only AdamW with bias correction is supported")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.name_to_dtype_map = {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}

    def initialize_state(self, param: Tensor, store_param_remainders: bool = False) -> None:
        """Moments of zero."""
        self.state[param].update(
            {name: torch.zeros_like(param, dtype=dtype) for name, dtype in self.name_to_dtype_map.items()}
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if not self.state[param]:
                    self.initialize_state(param)
            if params and not self.on_host and set(self.name_to_dtype_map.values()) == {torch.float32}:
                moments = [[self.state[param][name] for param in params] for name in self.name_to_dtype_map]
                self._update(group, params, moments)
                continue
            for param in params:  # one after another, so that few are wide, or on the device, at a time
                stored = [self.state[param][name] for name in self.name_to_dtype_map]
                wide = [moment.to(param.device, torch.float32, non_blocking=True) for moment in stored]
                self._update(group, [param], [[moment] for moment in wide])
                for moment, value in zip(stored, wide, strict=True):
                    moment.copy_(value, non_blocking=True)

    def _update(self, group: dict[str, Any], params: list[Tensor], moments: list[list[Tensor]]) -> None:
        adamw(
            params,
            [param.grad for param in params],
            *moments,
            [],
            [torch.tensor(group["step"] - 1.0, device=param.device) for param in params],
            foreach=False,
            fused=True,
            capturable=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class HostAdam(FusedAdam):
    """The same, with its moments in pinned memory of the host. Each weight's visit its device for the update, whose
    numbers are those of moments that stay there."""

    on_host = True

    def initialize_state(self, param: Tensor, store_param_remainders: bool = False) -> None:
        options: dict[str, Any] = {"device": "cpu", "pin_memory": param.is_cuda}
        self.state[param].update(
            {name: torch.zeros(param.shape, dtype=dtype, **options) for name, dtype in self.name_to_dtype_map.items()}
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], float] | None = None) -> None:
        super().step(closure)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a checkpoint reads the moments from the host


@contextmanager
def moments_on_host(wanted: bool) -> Iterator[None]:
    """Let Megatron create its optimizers with `HostAdam` within the block, if wanted."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    modules = (optimizer, distrib_optimizer) if wanted else ()
    originals = [module.Adam for module in modules]
    for module in modules:
        module.Adam = HostAdam
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.Adam = original
