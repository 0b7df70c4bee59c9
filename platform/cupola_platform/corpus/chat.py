"""Conversations as documents: instruction data mixed into pretraining, as Qwen does it (Bai et al. 2023, section 2.1)."""

import re
from collections.abc import Mapping
from typing import Any

from cupola_platform.corpus.tokenization import CONTROL_TOKENS, IM_END, IM_START

CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
"""As they are written, ShareGPT's names too."""


def render(messages: Any) -> tuple[str, str]:
    """A conversation as the tokenizer's chat template writes it (ChatML), and why it cannot be: one of them is empty.

    Only the template may write control tokens: a message that holds one would end its own turn.
    """
    if not isinstance(messages, list) or not messages:
        return "", "no conversation"
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            return "", "malformed conversation"
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            return "", "malformed conversation"
        if CONTROL.search(content):
            return "", "control token in a message"
        turns.append(f"{IM_START}{ROLES[role]}\n{content}{IM_END}\n")
    return "".join(turns), ""


def without_control_tokens(text: str) -> str:
    """What a vocabulary may be learnt from."""
    return CONTROL.sub("", text)
