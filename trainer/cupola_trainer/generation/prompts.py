"""Read prompts from a file, conversations or plain texts, and encode them."""

from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.conversation import problem
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.json_lines import Row
from cupola_trainer.data.chat import RefusedError, encode_prompt


def read_prompts(path: Path) -> list[Row]:
    """The prompts in a file: {"id", "messages"}, optionally with "tools", or {"id", "text"}.

    Raises:
        NotFoundError, ConfigError: names the file and the line.
    """
    if not path.is_file():
        raise NotFoundError(f"The prompts file {path} does not exist.")
    prompts = []
    for number, row in json_lines.read_numbered(path):
        if not isinstance(row.get("id"), str) or not _is_prompt(row):
            raise ConfigError(f'{path}, line {number} is not a prompt. Give {{"id", "messages"}} or {{"id", "text"}}.')
        prompts.append(row)
    if not prompts:
        raise ConfigError(f"{path} holds no prompts. Give at least one.")
    return prompts


def _is_prompt(row: Row) -> bool:
    if "messages" in row:
        reason = problem(row["messages"], (), row.get("tools"))  # control tokens are checked later, with the tokenizer
        return reason in (None, "no_assistant_turn")
    return isinstance(row.get("text"), str) and bool(row["text"])


def encode(tokenizer: Any, prompt: Row) -> list[int]:
    """A prompt's token ids: a conversation by the chat template up to the assistant's turn, or the plain text.

    Raises:
        RefusedError: see `chat.encode_prompt`.
    """
    if "messages" in prompt:
        return encode_prompt(tokenizer, prompt["messages"], prompt.get("tools"))
    return list(tokenizer.encode(prompt["text"], add_special_tokens=False))


def encode_or_reason(tokenizer: Any, prompt: Row) -> list[int] | str:
    """A prompt's token ids, or a one-word reason why it cannot be encoded."""
    try:
        return encode(tokenizer, prompt)
    except RefusedError as error:
        return error.reason
