"""Whether a checkpoint, a model and data go together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig

FINGERPRINTED = False  # refuses, and computes nothing


def check_architecture(folder: Path, model: ModelConfig, saved: ModelConfig) -> None:
    """Refuse a checkpoint whose model is not the job's."""
    for field in dataclasses.fields(model):
        ours, theirs = getattr(model, field.name), getattr(saved, field.name)
        if ours != theirs:
            raise ConfigError(
                f"{folder} holds another architecture: {field.name}={shortened(theirs)}, the job's model has "
                f"{shortened(ours)}. Give the model that it was trained with, or another output folder."
            )


def check_head(folder: Path, saved: ModelConfig, model: ModelConfig) -> None:
    """Refuse to train a language model from a reward or value model: its output layer is gone."""
    if saved.is_scalar and not model.is_scalar:
        raise ConfigError(
            f"{folder} is a model with head=scalar: it gives a number a token, and no words. "
            "Start from a language model's checkpoint."
        )


def check_tokenizer(ours: Path | None, data: Path) -> None:
    """Refuse tokens that another tokenizer made than the one that goes with the model.

    Args:
        ours: the model's tokenizer folder; none leaves it unchecked.
        data: the data's folder; unchecked where it carries no tokenizer.
    """
    if ours is not None and not same_tokenizer(ours, data / "tokenizer"):
        raise ConfigError(
            f"{data} goes with another tokenizer than the model's, {ours}. Its tokens mean other words: "
            "prepare the corpus (or choose the teacher) with the model's tokenizer, or train a new model."
        )


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two tokenizer folders give the same ids;
    true where one of them holds no tokenizer.json to be compared."""
    paths = one / "tokenizer.json", other / "tokenizer.json"
    return not all(path.is_file() for path in paths) or _words(paths[0]) == _words(paths[1])


def _words(path: Path) -> Any:
    content = json.loads(path.read_bytes())
    return content.get("model"), content.get("added_tokens")


def shortened(value: object) -> str:
    """A setting for a message."""
    text = json.dumps(value, default=lambda other: str(other))
    return text if len(text) <= 60 else f"{text[:57]}..."
