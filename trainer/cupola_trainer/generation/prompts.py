"""Prompts of a file: conversations or plain texts, as token ids."""

from pathlib import Path
from typing import Any

from cupola_platform import json_lines
from cupola_platform.conversation import problem
from cupola_platform.errors import ConfigError, NotFoundError
from cupola_platform.json_lines import Row
from cupola_trainer.data.chat import RefusedError, encode_prompt


def read_prompts(path: Path) -> list[Row]:
    """The prompts of a file: {"id", "messages"}, with "tools" where there are any, or {"id", "text"}.

    Raises:
        NotFoundError, ConfigError: names the file, and the line.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no {path} to read prompts from.")
    prompts = []
    for number, row in json_lines.read_numbered(path):
        if not isinstance(row.get("id"), str) or not _is_prompt(row):
            raise ConfigError(f'{path}, line {number} is not a prompt. Give {{"id", "messages"}} or {{"id", "text"}}.')
        prompts.append(row)
    if not prompts:
        raise ConfigError(f"{path} holds no prompts.")
    return prompts


def _is_prompt(row: Row) -> bool:
    if "messages" in row:
        reason = problem(
            row["messages"], (), row.get("tools")
        )  # which tokens are control tokens, the tokenizer says later
        return reason in (None, "no_assistant_turn")
    return isinstance(row.get("text"), str) and bool(row["text"])


def encode(tokenizer: Any, prompt: Row) -> list[int]:
    """A prompt's token ids: the template up to the assistant's turn, tools included, or the text as it is.

    Raises:
        as `chat.encode_prompt`.
    """
    if "messages" in prompt:
        return encode_prompt(tokenizer, prompt["messages"], prompt.get("tools"))
    return list(tokenizer.encode(prompt["text"], add_special_tokens=False))


def encode_or_reason(tokenizer: Any, prompt: Row) -> list[int] | str:
    """A prompt's token ids, or why it cannot be asked, in a word."""
    try:
        return encode(tokenizer, prompt)
    except RefusedError as error:
        return error.reason
