"""Memory that a model takes, against what follows from its configuration and from shorter rows."""

import gc
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from cupola_trainer import models, optim, runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, ModelConfig, OptimizerConfig
from cupola_trainer.config.model.sizes import parameter_count
from cupola_trainer.data.batches import Batch, to_rank
from cupola_trainer.objectives import passes
from cupola_trainer.objectives.next_token import NextTokenObjective
from gpu_check.networks import DENSE, draws
from gpu_check.rows import Section

STATE_BYTES = {torch.float32: 4 + 4 + 8, torch.bfloat16: 2 + 4 + 12}
"""Bytes of a parameter on one rank: weight and fp32 gradient; two moments and, of bf16 weights, an fp32 copy."""
MODEL = replace(
    DENSE, hidden_size=1024, num_layers=12, num_attention_heads=16, num_query_groups=8, ffn_hidden_size=2816,
    vocab_size=32_768, max_position_embeddings=32_768,
)  # fmt: skip
LENGTHS = (4096, 8192, 16_384)
SMALL = replace(DENSE, max_position_embeddings=3072)
SMALL_LENGTHS = (1024, 2048, 3072)
"""Past the length up to which attention keeps its scores."""
STATE_TOLERANCE, PEAK_TOLERANCE = 0.03, 0.1
FORECAST = "cupola_trainer.config.memory"
FORECAST_TOLERANCE = 0.3
"""The forecast leaves out the libraries' buffers and what one layer's backward pass needs for itself."""


def run(section: Section) -> None:
    """Train one step at three lengths: the first two forecast the third's peak, since memory is linear in the length."""
    model, lengths = (SMALL, SMALL_LENGTHS) if section.small else (MODEL, LENGTHS)
    gc.collect()
    before = held()
    runtime.start(LayoutConfig(), seed=0)
    [chunk] = models.build(model, LayoutConfig(), seed=0)
    trainee = optim.build([chunk], LayoutConfig(), OptimizerConfig(), 10)
    step(trainee, row(model, lengths[0]))  # allocates the optimizer's state
    gc.collect()
    counted = parameter_count(model) * STATE_BYTES[runtime.dtype()]
    state = (held() if torch.cuda.is_available() else _state_on_cpu(trainee)) - before
    section.judged(
        "weights, gradients and optimizer",
        abs(state / counted - 1) < STATE_TOLERANCE,
        {"forecast, MiB": counted / 2**20, "allocated, MiB": state / 2**20},
        f"forecast within {STATE_TOLERANCE:.0%}",
    )
    peaks = [peak(lambda length=length: step(trainee, row(model, length))) for length in lengths]  # type: ignore[misc]
    _forecast(section, model, dict(zip(lengths, peaks, strict=True)))
    first, second, third = peaks
    slope = (second - first) / (lengths[1] - lengths[0])
    forecast = second + slope * (lengths[2] - lengths[1])
    section.judged(
        f"a step's peak at {lengths[2]:,} tokens",
        abs(third / forecast - 1) < PEAK_TOLERANCE,
        {
            f"forecast from {lengths[0]:,} and {lengths[1]:,}, MiB": forecast / 2**20,
            "peak, MiB": third / 2**20,
            "KiB a token": slope / 2**10,
        },
        f"forecast within {PEAK_TOLERANCE:.0%}",
        "memory is not linear in the length",
    )


def _forecast(section: Section, model: ModelConfig, peaks: Mapping[int, int]) -> None:
    """Compare the trainer's forecast from the settings with the peaks at each length."""
    if importlib.util.find_spec(FORECAST) is None:
        section.unavailable("the trainer's forecast", "this version forecasts no memory")
        return
    forecast = importlib.import_module(FORECAST).forecast
    bytes_per_value = runtime.dtype().itemsize
    for length, found in peaks.items():
        batch = BatchConfig(sequence_length=length, micro_batch_size=1, global_batch_size=1)
        parts = forecast(model, LayoutConfig(), batch, OptimizerConfig(), bytes_per_value)
        wanted = parts.total if torch.cuda.is_available() else parts.total - parts.state
        name, figures = f"the trainer's forecast at {length:,} tokens", {"forecast, MiB": wanted / 2**20}
        figures["peak, MiB"] = found / 2**20
        if torch.cuda.is_available():
            rule = f"forecast within {FORECAST_TOLERANCE:.0%}"
            section.judged(name, abs(found / wanted - 1) < FORECAST_TOLERANCE, figures, rule)
        else:  # the logits of such small models, which it leaves out, count for more
            section.measured(name, figures)


def held() -> int:
    """Bytes that tensors occupy on the GPU; 0 on a CPU, where torch does not count them."""
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else 0


def peak(work: Callable[[], None]) -> int:
    """Bytes occupied at most during `work`: `max_memory_allocated` on a GPU. On a CPU, which does not count them, the
    bytes that autograd keeps for the backward pass."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


def step(trainee: Any, batch: Batch) -> None:
    """One training step on one row."""
    passes.train(trainee.chunks, NextTokenObjective.__new__(NextTokenObjective), [batch])  # its loss, without its data
    trainee.scheduler.step(increment=1)
    trainee.update()


def row(model: ModelConfig, length: int) -> Batch:
    """A row of random tokens, on the device."""
    tokens = torch.from_numpy(draws(6, length).integers(0, model.vocab_size, (1, length + 1)))
    return to_rank(
        {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(1, length),
            "position_ids": torch.arange(length)[None],
        }
    )


def _state_on_cpu(trainee: Any) -> int:
    """Bytes of the model's weights and gradient buffers and of the optimizer's tensors."""
    [chunk] = trainee.chunks
    storages = {}
    tensors = [each for weight in chunk.parameters() for each in (weight, getattr(weight, "main_grad", None))]
    for part in trainee.optimizer.chained_optimizers:
        for state in part.optimizer.state.values():
            tensors += [each for each in state.values() if torch.is_tensor(each)]
    for tensor in tensors:
        if tensor is not None:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())
