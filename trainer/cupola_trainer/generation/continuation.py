"""Continue a text or respond to a conversation with a checkpoint, in one process."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from cupola_platform.conversation import problem
from cupola_platform.errors import ConfigError
from cupola_trainer import runtime
from cupola_trainer.checkpoint.description import read_training
from cupola_trainer.config import LayoutConfig
from cupola_trainer.data.chat import encode_prompt
from cupola_trainer.generation.generation import generate
from cupola_trainer.generation.loading import load
from cupola_trainer.generation.sampling import Sampling


def continue_text(checkpoint: Path, prompt: str, sampling: Sampling, seed: int = 0) -> str:
    """The model's continuation of `prompt`, without special tokens.

    An imported model stops at the tokens named by its configuration and samples from all rows of its embedding, so that
    greedy text equals transformers'. Our own models stop at the tokenizer's control tokens and sample from its
    vocabulary.

    Raises:
        ConfigError: the prompt is empty or too long.
        CorruptArtifactError: the checkpoint does not verify; names the file.
    """
    if not prompt:
        raise ConfigError("The prompt is empty. Give at least one word to continue.")
    # includes the beginning-of-text token if the family has one
    return _continue(checkpoint, lambda tokenizer: list(tokenizer.encode(prompt)), sampling, seed, None)


def continue_chat(checkpoint: Path, file: Path, sampling: Sampling, seed: int = 0, day: date | None = None) -> str:
    """The response to a conversation, {"messages", "tools"} in JSON, encoded as in training. A final assistant message
    is dropped first.

    Args:
        day: today's date in the chat template; None for the date that the checkpoint was trained with.

    Raises:
        ConfigError: the file holds no conversation, or one that cannot be encoded.
        CorruptArtifactError: the checkpoint does not verify; names the file.
    """
    try:
        row = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}.") from None
    row = row if isinstance(row, dict) else {}
    messages: Any = row.get("messages")
    tools = row.get("tools")
    reason = problem(messages, (), tools)
    if reason not in (None, "no_assistant_turn"):
        raise ConfigError(f'{file} is not a conversation ({reason}). Give {{"messages": [...], "tools": [...]}}.')
    context = messages if reason else messages[:-1]
    return _continue(checkpoint, lambda tokenizer: encode_prompt(tokenizer, context, tools), sampling, seed, day)


def _continue(
    checkpoint: Path, encode: Callable[[Any], list[int]], sampling: Sampling, seed: int, day: date | None
) -> str:
    runtime.start(LayoutConfig(), seed)
    try:
        loaded = load(checkpoint, LayoutConfig(), day=day)
        tokens = encode(loaded.tokenizer)
        imported = read_training(checkpoint).get("control_tokens")
        stops = _as_list(imported["eos"]) if imported else None
        [completion] = generate(
            loaded.chunks, loaded.tokenizer, [tokens], sampling,
            stops=stops, vocabulary=loaded.model.vocab_size if imported else None, seed=seed,
        )  # fmt: skip
        return str(loaded.tokenizer.decode(completion.tokens, skip_special_tokens=True))
    finally:
        runtime.stop()


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
