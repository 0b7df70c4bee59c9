"""Conversations as tokens: ChatML, and which tokens are the assistant's. Imports no torch.

The tokenizer's own chat template is the truth, so training reads exactly what sampling will prompt with.

    <|im_start|>user\\nHow are you?<|im_end|>\\n<|im_start|>assistant\\nFine.<|im_end|>\\n
    0            0                 0         0                       1    1          0
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cupola_platform.errors import ConfigError

START = "<|im_start|>"
END = "<|im_end|>"
CONTROL_TOKENS = (START, END, "<|endoftext|>")
ROLES = frozenset({"system", "user", "assistant"})

Message = Mapping[str, str]


class ChatTokenizer(Protocol):
    """What we need of a transformers tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool = ...) -> Any: ...


def problem(messages: Any) -> str | None:
    """Why a conversation cannot be learnt from, as a short name to count drops by; None when it can.

    "malformed", "unknown_role", "empty_message", "control_token" (its text would close a turn), "no_assistant_turn",
    "no_question".
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return "malformed"
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            return "malformed"
        if message.get("role") not in ROLES:
            return "unknown_role"
        if not message["content"].strip():
            return "empty_message"
        if any(token in message["content"] for token in CONTROL_TOKENS):
            return "control_token"
    if messages[-1]["role"] != "assistant":
        return "no_assistant_turn"
    return None if messages[0]["role"] != "assistant" else "no_question"


def encode_prompt(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the assistant's next words begin."""
    return _encode(tokenizer, _render(tokenizer, messages, prompt=True))


def encode_answer(tokenizer: ChatTokenizer, answer: str) -> list[int]:
    """Token ids of an assistant's words and the control token that ends them."""
    return _encode(tokenizer, answer + END)


def encode_conversation(
    tokenizer: ChatTokenizer, messages: Sequence[Message]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Token ids [n] of a whole conversation, and mask [n]: true where the token is the assistant's to say.

    True on an answer's content and its <|im_end|>, for every assistant turn. A prompt and its answer are encoded apart,
    as in sampling, so that no token reaches over the border.

    Raises:
        ConfigError: the tokenizer's template is not ChatML.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    done = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:turn], prompt=True)
        whole = prompt + message["content"] + END
        if not _render(tokenizer, messages[: turn + 1]).startswith(whole) or not prompt.startswith(done):
            raise ConfigError(
                f"The tokenizer's chat template does not end an assistant's words with {END}. Use ChatML."
            )
        for text, learnt in ((prompt[len(done) :], False), (message["content"] + END, True)):
            ids = _encode(tokenizer, text)
            tokens += ids
            mask += [learnt] * len(ids)
        done = whole
    rest = _encode(tokenizer, _render(tokenizer, messages)[len(done) :])
    return np.array(tokens + rest, dtype=np.int64), np.array(mask + [False] * len(rest), dtype=np.bool_)


def _encode(tokenizer: ChatTokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _render(tokenizer: ChatTokenizer, messages: Sequence[Message], *, prompt: bool = False) -> str:
    try:
        text = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt)
    except ValueError as error:
        raise ConfigError(f"The tokenizer has no usable chat template: {error}") from error
    return str(text)
