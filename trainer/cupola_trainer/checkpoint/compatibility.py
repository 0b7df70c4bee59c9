"""Checks that a checkpoint, a model and data are compatible."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.config.model.architecture import ModelConfig

FINGERPRINTED = False  # only refuses, computes nothing


def check_architecture(folder: Path, model: ModelConfig, saved: ModelConfig) -> None:
    """Refuse a checkpoint whose architecture is not the job's."""
    for field in dataclasses.fields(model):
        ours, theirs = getattr(model, field.name), getattr(saved, field.name)
        if ours != theirs:
            raise ConfigError(
                f"{folder} has a different architecture: {field.name}={shortened(theirs)}, the job's model has "
                f"{shortened(ours)}. Use the model it was trained with, or another output folder."
            )


def check_head(folder: Path, saved: ModelConfig, model: ModelConfig) -> None:
    """Refuse to train a language model from a reward or value model, which has no output layer."""
    if saved.is_scalar and not model.is_scalar:
        raise ConfigError(
            f"{folder} has head=scalar: it outputs a number per token and has no language-model head. "
            "Start from a language model's checkpoint."
        )


def check_tokenizer(ours: Path | None, data: Path) -> None:
    """Refuse data tokenized with a different tokenizer than the model's.

    Args:
        ours: the model's tokenizer folder; None skips the check.
        data: the data's folder; not checked if it contains no tokenizer.
    """
    if ours is not None and not same_tokenizer(ours, data / "tokenizer"):
        raise ConfigError(
            f"{data} uses a different tokenizer than the model's, {ours}, so its token ids do not match. "
            "Prepare the corpus (or choose a teacher) with the model's tokenizer, or train a new model."
        )


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two tokenizer folders produce the same ids; true if either has no tokenizer.json."""
    paths = one / "tokenizer.json", other / "tokenizer.json"
    return not all(path.is_file() for path in paths) or _vocabulary(paths[0]) == _vocabulary(paths[1])


def _vocabulary(path: Path) -> Any:
    content = json.loads(path.read_bytes())
    return content.get("model"), content.get("added_tokens")


def shortened(value: object) -> str:
    """A setting as text, shortened for messages."""
    text = json.dumps(value, default=lambda other: str(other))
    return text if len(text) <= 60 else f"{text[:57]}..."
