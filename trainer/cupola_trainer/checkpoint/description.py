"""A checkpoint's metadata."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cupola_platform.errors import ConfigError, NotFoundError
from cupola_trainer.config import OPTIMIZER, ModelConfig

MODEL = TypeAdapter(ModelConfig)
STATE = "state"
"""Folder of a checkpoint that holds its weights."""
SCHEDULE = f"{OPTIMIZER}/optimizer.json"
"""File of a checkpoint with the optimizer's step and the scheduler's state."""


@dataclass(frozen=True)
class Progress:
    """Progress of a training job."""

    step: int = 0
    consumed_samples: int = 0
    """Position in the order of samples at which the next step starts reading."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other entries of training.json, written by the loop."""


def read_model(folder: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint.

    Raises:
        NotFoundError: there is no checkpoint in the folder.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no checkpoint: model.json is missing. Give a checkpoint folder.")
    return MODEL.validate_json(path.read_bytes())


def read_training(folder: Path) -> dict[str, Any]:
    """A checkpoint's training.json."""
    return dict(json.loads((folder / "training.json").read_bytes()))


def read_optimizer(folder: Path) -> dict[str, Any]:
    """The optimizer's step and the scheduler's state in a checkpoint: `step` and `scheduler`.

    Raises:
        ConfigError: the checkpoint has no optimizer state.
    """
    path = folder / SCHEDULE
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds weights only. Start a new job from it (parent: {folder}), or put it together with its "
            "optimizer state: cupola checkpoint restore."
        )
    return dict(json.loads(path.read_bytes()))
