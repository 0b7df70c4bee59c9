"""Conversations as documents: instruction data mixed into pretraining, as Qwen does it (Bai et al. 2023, section
2.1)."""

import json
import re
from functools import cache
from typing import Any

from cupola_platform.conversation import for_template, normal_tools, problem
from cupola_platform.corpus.core.qwen_tokenizer import CHAT_TEMPLATE, CONTROL_TOKENS
from cupola_platform.json_lines import BadLineError
from cupola_platform.rows.messages import messages_of
from cupola_platform.rows.values import plain

CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))

REASONS = {
    "control_token": "control token in a message",
    "malformed_tools": "malformed tools",
    "malformed_tool_call": "malformed tool call",
}
"""The report's name of each `problem`; any other is a malformed conversation."""


def render(messages: Any, tools: Any = None) -> tuple[str, str]:
    """A conversation rendered by the tokenizer's chat template, and the reason if that fails; one of them is empty.

    Only the template may write control tokens: a message, call or tool that contains one would end its own turn.

    Args:
        tools: JSON schemas of the available tools, or a JSON string of them.
    """
    try:
        turns = messages_of(plain(messages))
    except BadLineError:
        return "", "malformed conversation"
    if not turns:
        return "", "no conversation"
    reason = problem(turns, CONTROL_TOKENS, tools)
    if reason and reason not in ("no_assistant_turn", "no_prompt"):  # fine as a document, though not for SFT
        return "", REASONS.get(reason, "malformed conversation")
    return str(_template().render(messages=for_template(turns), tools=normal_tools(tools))), ""


@cache
def _template() -> Any:
    """The chat template as transformers compiles it, without the generation tags."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(re.sub(r"{%- (end)?generation %}", "", CHAT_TEMPLATE))


def without_control_tokens(text: str) -> str:
    """The text without control tokens, for training a vocabulary."""
    return CONTROL.sub("", text)
