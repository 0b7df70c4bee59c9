"""Replacement for `torch.cuda` in Megatron-Core without CUDA: the CPU is the only device, streams do nothing."""

import contextlib
import types
from typing import Any, Self

import torch

FloatTensor, HalfTensor, BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor
OutOfMemoryError = torch.cuda.OutOfMemoryError
manual_seed = torch.manual_seed


class Stream:
    """A stream or event on which everything is already complete."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 0.0


Event = Stream
_STREAM = Stream()


class CUDAGraph:
    """Never instantiated: graphs need CUDA."""


class _Generators:
    def __getitem__(self, device: object) -> torch.Generator:
        return torch.default_generator


default_generators = _Generators()


def is_available() -> bool:
    return False


def is_current_stream_capturing() -> bool:
    return False


def current_device() -> torch.device:
    return torch.device("cpu")


def device_count() -> int:
    return 1


def _nothing(*args: Any, **kwargs: Any) -> None: ...


set_device = synchronize = empty_cache = _lazy_init = _nothing


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


memory_allocated = max_memory_allocated = memory_reserved = _zero


def current_stream(*args: Any) -> Stream:
    return _STREAM


default_stream = current_stream


def stream(*args: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


device = stream


def get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)


def _lazy_call(function: Any, **kwargs: Any) -> None:
    function()


random = types.SimpleNamespace(get_rng_state=get_rng_state)
nvtx = types.SimpleNamespace(range_push=_nothing, range_pop=_nothing, range=stream)
amp = types.SimpleNamespace()


def __getattr__(name: str) -> Any:
    return getattr(torch.cuda, name)
