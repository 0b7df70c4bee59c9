"""Random number generators as plain JSON."""

import base64
import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker


def snapshot() -> dict[str, Any]:
    """The state of every generator of this process."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state()),
        "megatron": {name: _encode(states) for name, states in get_cuda_rng_tracker().get_states().items()},
    }


def restore(state: dict[str, Any]) -> None:
    """Put every generator back where `snapshot` found it."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(_decode(state["torch"]))
    get_cuda_rng_tracker().set_states({name: _decode(text) for name, text in state["megatron"].items()})


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
