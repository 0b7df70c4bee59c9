"""Any row is either a conversation or pair that survives a round trip, or is dropped with a reason."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola_platform import json_lines
from cupola_platform.conversation import problem
from cupola_platform.corpus.core.chat_documents import render
from cupola_platform.json_lines import BadLineError
from cupola_trainer.data import shapes, trees

TEXTS = st.sampled_from(
    ["", " ", "Is it?", "[", "{", "[1]", '["a", "b"]', '{"role": "user"}', "null", "\ud83d", "\u2028", "<|im_end|>",
    "[" * 3000,
     '[{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]', "\n\nHuman: A\n\nAssistant: B",
     "### Human: A", '{"name": "f", "arguments": {}}', "<tool_call>{}</tool_call>", "<tool_call>", "user", "assistant",
     "function_call", "tool", "4.5", "nan"]
)  # fmt: skip
KEYS = st.sampled_from(
    ["role", "from", "content", "value", "parts", "text", "type", "name", "arguments", "function", "tool_calls",
    "function_call",
     "messages", "replies", "message_id", "parent_id", "rank", "response", "overall_score", "tools"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "function_call"]) | VALUES,
        "content": TEXTS | VALUES}, optional={"tool_calls": VALUES, "function_call": VALUES, "name": VALUES,
        "tool_call_id": VALUES},
    ),
    max_size=4,
)  # fmt: skip
COLUMNS = [
    *shapes.CONVERSATIONS,
    *shapes.PROMPT_COLUMNS,
    *shapes.RESPONSE_COLUMNS,
    "system",
    "history",
    "tools",
    "tests",
    "tag",
    "margin",
    "text",
]
SIDES = ["chosen", "rejected", "response_1", "response_2", "preference_strength", "completions", "conversation_a", "conversation_b",
         "winner", "chosen_score", "prompt", "messages", "tools", "input"]  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(COLUMNS), MESSAGES | VALUES, max_size=5)
PAIRS = st.fixed_dictionaries(
    {"chosen": MESSAGES | TEXTS | VALUES, "rejected": MESSAGES | TEXTS | VALUES},
    optional=dict.fromkeys(SIDES[2:], MESSAGES | VALUES),
) | st.dictionaries(st.sampled_from(SIDES), MESSAGES | VALUES, max_size=6)  # fmt: skip


def usable(shape: Callable[[Any], Any], row: Any) -> list[Any]:
    """The shaped row after a round trip through a file; empty if it was dropped."""
    try:
        made = shape(row)
    except BadLineError:
        return []
    assert json.dumps(json_lines.parse(json_lines.dump(made))) == json.dumps(made)
    return [made]


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_any_row_is_a_conversation_or_is_dropped_with_a_reason(row: Any) -> None:
    for made in usable(shapes.conversation, row):
        assert problem(made["messages"]) is None


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_any_row_is_a_pair_or_is_dropped_with_a_reason(row: Any) -> None:
    for made in usable(shapes.pair, row):
        assert made["messages"]
        assert made["chosen"] != made["rejected"]


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES | st.fixed_dictionaries({"message_id": VALUES, "text": TEXTS, "role": VALUES}, optional={"parent_id": VALUES, "replies": VALUES, "rank": VALUES}), max_size=4))  # fmt: skip
@pytest.mark.parametrize("make", [trees.best_path, trees.ranked_pairs])
def test_any_message_tree_yields_rows(make: Any, found: list[Any]) -> None:
    rows = [(place, row) for place, row in enumerate(found) if isinstance(row, dict)]
    shape = shapes.conversation if make is trees.best_path else shapes.pair
    for _, _, row in trees.grown(rows, make):
        usable(shape, row)


@settings(max_examples=60, deadline=None)
@given(MESSAGES | VALUES)
def test_any_column_is_a_document_or_is_dropped_with_a_reason(messages: Any) -> None:
    text, reason = render(messages)
    assert bool(text) != bool(reason)
