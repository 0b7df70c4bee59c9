"""What draws responses: the model in training itself, or another engine that is given its weights."""

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
    """Every rank calls it with the same prompts, and gets every completion."""

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        """Continue each prompt with the weights of this moment. The same weights,
        prompts and seed give the same responses."""
        ...


class MegatronEngine:
    """The model in training, in its own layout: there are no weights to hand over, and log-probabilities agree."""

    def __init__(self, chunks: Sequence[torch.nn.Module], tokenizer: Any, batch_size: int) -> None:
        self.chunks, self.tokenizer, self.batch_size = chunks, tokenizer, batch_size

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, *, seed: int) -> list[Completion]:
        done: list[Completion] = generate(
            self.chunks, self.tokenizer, prompts, sampling, batch_size=self.batch_size, seed=seed
        )
        return done


def engine_of(config: RolloutConfig, chunks: Sequence[torch.nn.Module], tokenizer: Any, model: ModelConfig) -> Engine:
    """The engine that a job names.

    Raises:
        ConfigError: it is not installed, or cannot have such a model, or adapters.
    """
    if config.engine == "megatron":
        return MegatronEngine(chunks, tokenizer, config.batch_size)
    if any(name.endswith(ADAPTERS) for chunk in chunks for name, _ in chunk.named_parameters()):
        raise ConfigError(
            "rollout.engine=vllm with lora: it would be given the adapters alone. Take the engine megatron."
        )
    from cupola_trainer.generation.vllm import VllmEngine  # takes a GPU's memory where it is chosen

    return VllmEngine(chunks, tokenizer, model, config.engine_memory)
