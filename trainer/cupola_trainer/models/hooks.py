"""Reading a module's weights without calling the module: what its hooks then miss."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP

WAITS = "megatron.core.distributed.distributed_data_parallel"
"""The module whose hooks wait for weights."""


def is_watched(module: torch.nn.Module) -> bool:
    """Whether somebody else's hook, a measurement's for instance, wants to see each call of the module."""
    return bool(module._forward_hooks) or any(hook.__module__ != WAITS for hook in module._forward_pre_hooks.values())


def gathered(module: torch.nn.Module) -> torch.nn.Module:
    """The module, whose own weights are up to date. Where data parallelism gathers updated weights beside the forward
    pass, it waits for a module's in a hook that only calling the module runs: read at once, they may be old."""
    for hook in module._forward_pre_hooks.values():
        if hook.__module__ == WAITS:
            hook(module, ())
    return module


def gather_overlapped_experts(chunks: Sequence[torch.nn.Module]) -> None:
    """Let shared experts that overlap with the exchange of tokens, whose parts Megatron calls one by one, wait for
    their gates' weights."""
    for module in (module for chunk in chunks for module in chunk.modules()):
        if isinstance(module, SharedExpertMLP):
            module.pre_forward_comm = partial(_first_gathered, module, module.pre_forward_comm)


def _first_gathered(module: torch.nn.Module, call: Any, *args: Any) -> Any:
    gathered(module)
    return call(*args)
