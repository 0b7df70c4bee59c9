"""What a checkpoint says of itself, beside its tensors."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cupola_platform.errors import NotFoundError
from cupola_trainer.config import ModelConfig

MODEL = TypeAdapter(ModelConfig)


@dataclass(frozen=True)
class Progress:
    """How far a training job has come."""

    step: int = 0
    consumed_samples: int = 0
    """Place in the order of samples that the next step reads from."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What else the loop left in training.json."""


def read_model(folder: Path) -> ModelConfig:
    """The shape of a checkpoint's model.

    Raises:
        NotFoundError: there is no checkpoint in the folder.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise NotFoundError(f"{folder} holds no checkpoint: model.json is missing. Give a checkpoint's folder.")
    return MODEL.validate_json(path.read_bytes())


def read_training(folder: Path) -> dict[str, Any]:
    """How a checkpoint was trained: its training.json."""
    return dict(json.loads((folder / "training.json").read_bytes()))
