"""Load a checkpoint for generation or evaluation."""

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer import checkpoint, models
from cupola_trainer.config import LayoutConfig, ModelConfig
from cupola_trainer.config.layout_rules import of_its_own, validate_layout
from cupola_trainer.data.tokenizer_folders import load_tokenizer


@dataclass(frozen=True, slots=True)
class Loaded:
    """This rank's part of a checkpoint's model, and its tokenizer."""

    model: ModelConfig
    chunks: list[Any]
    tokenizer: Any


def check_whole(layout: LayoutConfig, what: str) -> None:
    """Refuse a layout that splits layers or sequences over ranks.

    Args:
        what: the feature that needs whole sequences on every rank; subject of the message.

    Raises:
        ConfigError: pipeline or context parallelism.
    """
    if layout.pp > 1 or layout.cp > 1:
        raise ConfigError(
            f"layout: pp={layout.pp}, cp={layout.cp}. {what} reads logits of whole sequences on every rank, which "
            f"needs pp=1 and cp=1. Use dp={layout.world_size // layout.tp} instead."
        )


def load(folder: Path, layout: LayoutConfig, model: ModelConfig | None = None, *, day: date | None = None) -> Loaded:
    """Load a checkpoint's model in evaluation mode, in any layout. Call `runtime.start` first.

    Sequence parallelism is off, because decoding has one token per sequence. For dense models, expert parallelism is
    ignored, so that one layout works for dense checkpoints and mixtures of experts.

    Args:
        model: the checkpoint's model with other positions; None for the checkpoint's own.
        day: today's date in the chat template; None for the date that the checkpoint was trained with.

    Raises:
        ConfigError: the layout does not fit the model, or the checkpoint has no tokenizer.
        CorruptArtifactError: the checkpoint does not verify; names the file.
    """
    if not (folder / "tokenizer").is_dir():
        raise ConfigError(
            f"{folder} has no tokenizer: it was imported without one. Import it again from a folder that has a "
            "tokenizer.json."
        )
    model = model or checkpoint.read_model(folder)
    if model.is_scalar:
        raise ConfigError(
            f"{folder} is a reward model (head=scalar), without a language-model head. Give a language model."
        )
    layout = of_its_own(model, layout)
    validate_layout(model, replace(layout, sp=layout.tp > 1))  # as in training
    chunks = models.build(model, replace(layout, sp=False), seed=None)
    checkpoint.load_weights(folder, chunks)
    for chunk in chunks:
        chunk.eval()
    return Loaded(model, chunks, load_tokenizer(folder / "tokenizer", day))
