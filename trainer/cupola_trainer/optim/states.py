"""The state of Adam: what its moments are stored in, and which steps it counts. The same for Transformer Engine's and
for ours, which share their attributes."""

from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


def store_moments_in(optimizer: Any, dtype: torch.dtype) -> None:
    """Store both moments of a new optimizer in `dtype`. They are computed in fp32 and rounded to the nearest."""
    for part in optimizer.chained_optimizers:
        if not part.is_stub_optimizer:
            part.optimizer.name_to_dtype_map.update(dict.fromkeys(MOMENTS, dtype))
            part.init_state_fn = _zeros


def _zeros(adam: Any, config: Any = None) -> None:
    for group in adam.param_groups:
        for weight in group["params"]:
            if not adam.state[weight]:
                adam.initialize_state(weight, False)


def count_every_step(optimizer: Any) -> None:
    """Count steps in parameter groups without parameters too. Adam counts none there, but a rank that holds only such
    groups saves the count, and merging looks at the first group's."""
    for part in optimizer.chained_optimizers:
        if not part.is_stub_optimizer:
            part.optimizer.register_step_post_hook(_count)


def _count(adam: Any, *unused: Any) -> None:
    for group in adam.param_groups:
        if not group["params"]:
            group["step"] = group.get("step", 0) + 1
