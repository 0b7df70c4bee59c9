"""What an objective is built from, and a cache for what it computes at a job's first start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from cupola_platform.durable import replacing
from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig, LayoutConfig, Precision
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.data.chat import ChatTokenizer
from cupola_trainer.data.tokenizer_folders import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class ObjectiveInputs:
    """The job's settings that an objective may depend on, and its model and tokenizer."""

    name: str
    """The objective's name."""
    data: Any
    """One of `config.TrainingData`."""
    batch: BatchConfig
    steps: int
    """Training steps; 0 if `data` sets epochs instead."""
    seed: int
    output: Path
    """The job's folder."""
    tokenizer: Path | None = None
    """Folder of the model's tokenizer."""
    template_date: date | None = None
    """Date for chat templates; None for the one saved with the tokenizer."""
    model: ModelConfig | None = None
    """The model to train."""
    parent: Path | None = None
    """Checkpoint folder to start from."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    precision: Precision = "auto"
    dry: bool = False
    """Write nothing but caches."""

    def chat_tokenizer(self) -> ChatTokenizer:
        """The tokenizer, with its chat template.

        Raises:
            ConfigError: there is none.
        """
        return required_tokenizer(self.tokenizer, self.template_date, self.name)


def required_tokenizer(folder: Path | None, day: date | None, objective: str) -> ChatTokenizer:
    """Load the tokenizer in a folder, for an objective that reads conversations.

    Raises:
        ConfigError: `folder` is None.
    """
    if folder is None:
        raise ConfigError(f"the objective {objective} needs a tokenizer. Set tokenizer, or a parent that has one.")
    tokenizer: ChatTokenizer = load_tokenizer(folder, day)
    return tokenizer


def computed_once(path: Path | None, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Arrays derived from a job's initial weights: computed at its first start, read from `path` at later ones.

    Called on every rank. If `path` is None, nothing is cached.
    """
    if path is None:
        return compute()
    kept: dict[str, np.ndarray] | None = runtime.on_first_rank(lambda: dict(np.load(path)) if path.exists() else None)
    if kept is not None:
        return kept
    arrays = compute()
    if runtime.rank() == 0:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    return arrays
