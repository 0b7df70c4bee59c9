"""Time the parts of a step, and count the model's FLOPs per token for MFU."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from cupola_trainer import runtime
from cupola_trainer.config import ModelConfig
from cupola_trainer.optim import Trainee

FINGERPRINTED = False  # only measures

PARTS = {"forward-compute": "forward", "backward-compute": "backward"}
"""Megatron's timer names to ours. All other timers in its schedules measure communication between ranks."""


class StepTimes:
    """Seconds per part of the steps since the last `take`, on this rank. Megatron's schedules use it as `timers`.

    forward and backward include their tensor-parallel collectives; communication is between data-parallel ranks and
    pipeline stages.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._started: dict[str, float] = {}

    def attach(self, trainee: Trainee) -> None:
        """Make Megatron's schedules report to this object."""
        for chunk in trainee.chunks:
            chunk.config.timers = self

    def __call__(self, name: str, log_level: int | None = None) -> "_Timer":
        return _Timer(self, name)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time spent inside as the part `name`."""
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def start(self, name: str) -> None:
        runtime.synchronize()
        self._started[name] = time.perf_counter()

    def stop(self, name: str) -> None:
        runtime.synchronize()
        self._seconds[name] += time.perf_counter() - self._started.pop(name)

    def take(self, steps: int) -> dict[str, float]:
        """Mean seconds per step of each part, as `seconds_PART`. Resets the counters."""
        means = {f"seconds_{name}": seconds / steps for name, seconds in sorted(self._seconds.items())}
        self._seconds.clear()
        return means


class _Timer:
    """The timer interface that Megatron expects."""

    def __init__(self, times: StepTimes, name: str) -> None:
        self._times = times
        self._name = PARTS.get(name, "communication")
        self._whole = name == "forward-backward"  # contains the others

    def start(self, barrier: bool = False) -> None:
        if not self._whole:
            self._times.start(self._name)

    def stop(self, barrier: bool = False) -> None:
        if not self._whole:
            self._times.stop(self._name)


def flops_per_token(model: ModelConfig, sequence_length: float) -> float:
    """FLOPs to train on one token: three times those of the forward pass's matrix products.

    Two per active weight (of the experts, only the `top_k`), plus causal attention's scores and weighted sums over half
    the sequence on average (PaLM, appendix B, counts the whole). Recomputation is not counted.
    """
    h, head = model.hidden_size, model.head_size
    attention = h * head * (2 * model.num_attention_heads + 2 * model.num_query_groups)
    if model.moe:
        width = model.moe.top_k * model.moe.expert_ffn_hidden_size + (model.moe.shared_expert_ffn_hidden_size or 0)
        ffn = 3 * h * width + h * model.moe.num_experts
    else:
        ffn = 3 * h * model.ffn_hidden_size
    scores = model.num_attention_heads * head * sequence_length  # two products over half the sequence
    return 6.0 * (model.num_layers * (attention + ffn + scores) + h * (1 if model.is_scalar else model.vocab_size))
