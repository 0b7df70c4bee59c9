"""Conversations as documents: instruction data mixed into pretraining, as Qwen does it (Bai et al. 2023, section 2.1)."""

import re
from typing import Any

from cupola_platform.corpus.tokenization import CONTROL_TOKENS, IM_END, IM_START
from cupola_platform.json_lines import BadLineError
from cupola_platform.rows.messages import messages_of
from cupola_platform.rows.values import plain

CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))

ROLES = ("system", "user", "assistant")


def render(messages: Any) -> tuple[str, str]:
    """A conversation as the tokenizer's chat template writes it (ChatML), and why it cannot be: one of them is empty.

    Only the template may write control tokens: a message that holds one would end its own turn.
    """
    try:
        found = messages_of(plain(messages))
    except BadLineError:
        return "", "malformed conversation"
    if not found:
        return "", "no conversation"
    turns = []
    for message in found:
        role, content = message["role"], message["content"]
        if role == "tool" or "tool_calls" in message:
            return "", "conversation with tools"
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            return "", "malformed conversation"
        if CONTROL.search(content):
            return "", "control token in a message"
        turns.append(f"{IM_START}{role}\n{content}{IM_END}\n")
    return "".join(turns), ""


def without_control_tokens(text: str) -> str:
    """What a vocabulary may be learnt from."""
    return CONTROL.sub("", text)
