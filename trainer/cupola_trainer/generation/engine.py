"""Engines that generate responses during training: the model itself, or another engine given its weights."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from cupola_platform.errors import ConfigError
from cupola_trainer.checkpoint.shards import ADAPTERS
from cupola_trainer.config import ModelConfig, RolloutConfig
from cupola_trainer.generation.batch import Completion
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.sampling import Sampling


class Engine(Protocol):
    """Generates responses. Called on every rank with the same prompts; all get every completion."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        """Continue each prompt with the current weights. Deterministic given weights, prompts and seed."""
        ...


class MegatronEngine:
    """The model in training, in its own layout: no weights to transfer, and log-probabilities match."""

    def __init__(self, chunks: Sequence[torch.nn.Module], tokenizer: Any, batch_size: int) -> None:
        self.chunks, self.tokenizer, self.batch_size = chunks, tokenizer, batch_size

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        done: list[Completion] = generate(
            self.chunks, self.tokenizer, prompts, sampling, batch_size=self.batch_size, seed=seed
        )
        return done


def engine_of(config: RolloutConfig, chunks: Sequence[torch.nn.Module], tokenizer: Any, model: ModelConfig) -> Engine:
    """Create the engine set in `config`.

    Raises:
        ConfigError: it is not installed, or does not support the model or adapters.
    """
    if config.engine == "megatron":
        return MegatronEngine(chunks, tokenizer, config.batch_size)
    if any(name.endswith(ADAPTERS) for chunk in chunks for name, _ in chunk.named_parameters()):
        raise ConfigError(
            "rollout.engine=vllm does not support lora: it would get only the adapters. Use rollout.engine=megatron."
        )
    from cupola_trainer.generation.vllm import VllmEngine  # imported only if chosen: it takes GPU memory

    return VllmEngine(chunks, tokenizer, model, config.engine_memory)
