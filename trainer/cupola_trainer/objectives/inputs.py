"""What an objective is built from, and what it keeps of a job's beginning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cupola_platform.durable import replacing
from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.config import BatchConfig, LayoutConfig
from cupola_trainer.config.model.architecture import ModelConfig
from cupola_trainer.data.chat import ChatTokenizer
from cupola_trainer.data.tokenizer_folders import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class ObjectiveInputs:
    """A job's settings, as far as an objective may depend on them, and its model and tokenizer."""

    name: str
    """The objective's."""
    data: Any
    """One of `config.TrainingData`."""
    batch: BatchConfig
    steps: int
    """Of the training; 0 where `data` counts epochs."""
    seed: int
    output: Path
    """The job's folder."""
    tokenizer: Path | None = None
    """Folder of the model's tokenizer."""
    template_date: date | None = None
    """Date for chat templates; none for the one that the tokenizer keeps."""
    model: ModelConfig | None = None
    """The model to be trained."""
    parent: Path | None = None
    """Checkpoint folder that it starts from."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    dry: bool = False
    """Nothing may be written but caches."""

    @property
    def samples(self) -> int:
        """Training samples of all steps."""
        return self.steps * self.batch.global_batch_size

    def chat_tokenizer(self) -> ChatTokenizer:
        """The tokenizer, with its chat template.

        Raises:
            ConfigError: there is none.
        """
        return required_tokenizer(self.tokenizer, self.template_date, self.name)


def required_tokenizer(folder: Path | None, day: date | None, objective: str) -> ChatTokenizer:
    """The tokenizer of a folder, for an objective that reads conversations.

    Raises:
        ConfigError: there is no folder.
    """
    if folder is None:
        raise ConfigError(f"the objective {objective} needs a tokenizer: name its folder, or a parent checkpoint.")
    tokenizer: ChatTokenizer = load_tokenizer(folder, day)
    return tokenizer


def computed_once(path: Path | None, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Arrays that follow from a job's initial weights: computed at its first start, and read from `path` at later ones.

    Every rank calls it. None for a path computes and keeps nothing.
    """
    if path and runtime.on_first_rank(path.exists):
        return dict(np.load(path))
    arrays = compute()
    if path and runtime.rank() == 0:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    return arrays
