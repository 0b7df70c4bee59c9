"""Conversations as tokens and loss masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cupola_platform.conversation import problem
from cupola_platform.errors import ConfigError
from cupola_trainer.data.chat import (
    RefusedByTemplateError,
    encode_conversation,
    encode_prompt,
    encode_response,
    turn_end,
)

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12 + 3?"},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": "and 4 more?"},
    {"role": "assistant", "content": "19, of course:\n\n 15 + 4."},
]
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 12 + 3?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 12, "b": 3}'}}],
    },
    {"role": "tool", "content": "15"},
    {"role": "assistant", "content": "It is 15."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            },
        },
    }
]
QWEN25 = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}"
    "{{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n"
    "You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\\n</tools>\\n\\nFor each function call, return a json object<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or "
    "(message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role }}"
    "{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}"
    "{%- for tool_call in message.tool_calls %}{%- if tool_call.function is defined %}"
    "{%- set tool_call = tool_call.function %}{%- endif %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' }}{{- tool_call.name }}{{- \'", "arguments": \' }}'
    "{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}"
    "{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Qwen2.5-Instruct's template, with its long instructions on calls shortened."""
MARKED = (
    QWEN25.replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
        "{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.role == 'assistant' %}{% generation %}"
        "{{- message.content + '<|im_end|>' }}{% endgeneration %}{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}"
        "{{- '\\n' }}",
    )
    .replace(
        "{{- '<|im_start|>' + message.role }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}",
        "{{- '<|im_start|>' + message.role + '\\n' }}{% generation %}"
        "{%- if message.content %}{{- message.content + '\\n' }}{%- endif %}",
    )
    .replace("{{- '\\n<tool_call>", "{%- if not loop.first %}{{- '\\n' }}{%- endif %}{{- '<tool_call>")
    .replace(
        "</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}",
        "</tool_call>' }}{%- endfor %}{{- '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}",
    )
)
"""The same, with transformers' generation marks around assistant turns."""
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
"""Gemma 2's, with our control tokens instead of <start_of_turn> and <end_of_turn>."""


@contextmanager
def template(tokenizer: Any, text: str | None) -> Iterator[None]:
    """Temporarily replace the chat template."""
    ours, tokenizer.chat_template = tokenizer.chat_template, text
    try:
        yield
    finally:
        tokenizer.chat_template = ours


def test_calls_and_their_results_are_rendered_as_by_qwen25(chat_tokenizer: Any) -> None:
    with template(chat_tokenizer, QWEN25):
        tokens, mask = encode_conversation(chat_tokenizer, CALLING, TOOLS)
        plain = [dict(turn) for turn in CALLING]
        plain[1]["tool_calls"] = [{"type": "function", "function": {"name": "add", "arguments": {"a": 12, "b": 3}}}]
        text = chat_tokenizer.apply_chat_template(plain, tools=TOOLS, tokenize=False)
    assert tokens.tolist() == chat_tokenizer.encode(text, add_special_tokens=False)
    assert '"name": "add", "description": "Adds."' in text
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": 3}}\n</tool_call><|im_end|>'
    trained = [chat_tokenizer.decode(tokens[part]) for part in runs(mask)]
    assert trained == [call, "It is 15.<|im_end|>"]
    assert "<tool_response>\n15\n</tool_response>" in text


def call(a: int, b: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "arguments": {"a": a, "b": b}}}


@pytest.mark.parametrize(
    "turns",
    [
        [TURNS[1], {**CALLING[1], "tool_calls": [call(12, 3)]}, *CALLING[2:], *TURNS[3:]],
        [
            TURNS[1],
            {"role": "assistant", "content": "Two sums, then.", "tool_calls": [call(1, 2), call(3, 4)]},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "3 and 7."},
            TURNS[3],
            {"role": "assistant", "content": "", "tool_calls": [call(7, 4)]},
            {"role": "tool", "content": "11"},
            TURNS[4],
        ],
    ],
    ids=["one call", "two calls, two results"],
)
def test_the_loss_mask_equals_the_assistant_mask_of_transformers(
    chat_tokenizer: Any, turns: list[dict[str, Any]]
) -> None:
    with template(chat_tokenizer, QWEN25):
        tokens, mask = encode_conversation(chat_tokenizer, turns, TOOLS)
    with template(chat_tokenizer, MARKED):
        rendered = chat_tokenizer.apply_chat_template(
            turns, tools=TOOLS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    assert tokens.tolist() == rendered["input_ids"]
    assert mask.astype(int).tolist() == rendered["assistant_masks"]
    assert 0 < mask.sum() < len(mask)


def runs(mask: Any) -> list[slice]:
    """Contiguous runs of the mask, one per assistant turn."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [slice(start, stop) for start, stop in edges.reshape(-1, 2)]


def test_another_familys_template_may_rename_roles_and_trim_text(chat_tokenizer: Any) -> None:
    turns = [TURNS[1], {"role": "assistant", "content": "  15 \n"}, *TURNS[3:]]
    with template(chat_tokenizer, GEMMA):
        tokens, mask = encode_conversation(chat_tokenizer, turns)
        text = chat_tokenizer.apply_chat_template(turns, tokenize=False)
        assert turn_end(chat_tokenizer) == "<|im_end|>"
        with pytest.raises(RefusedByTemplateError, match="System role not supported"):
            encode_conversation(chat_tokenizer, TURNS)
    assert chat_tokenizer.decode(tokens) == text
    trained = [chat_tokenizer.decode(tokens[part]) for part in runs(mask)]
    assert trained == ["15<|im_end|>", "19, of course:\n\n 15 + 4.<|im_end|>"]


def test_a_template_that_ends_turns_without_a_control_token_is_refused(chat_tokenizer: Any) -> None:
    plain = chat_tokenizer.chat_template.replace("<|im_end|>", "<|eot|>")
    with (
        template(chat_tokenizer, plain),
        pytest.raises(ConfigError, match=r"ends responses with '<\|eot\|>.*holds no control token"),
    ):
        turn_end(chat_tokenizer)


def test_a_template_that_rewrites_earlier_turns_is_refused(chat_tokenizer: Any) -> None:
    forgetful = chat_tokenizer.chat_template.replace(
        "message.content", "(message.content if loop.index > messages | length - 2 else '')"
    )
    with template(chat_tokenizer, forgetful), pytest.raises(ConfigError, match="rewrites earlier turns"):
        encode_conversation(chat_tokenizer, TURNS[1:])


def test_a_conversation_has_the_tokens_that_transformers_renders(chat_tokenizer: Any) -> None:
    reference = chat_tokenizer.apply_chat_template(
        TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, mask = encode_conversation(chat_tokenizer, TURNS)
    assert tokens.tolist() == reference["input_ids"]
    assert mask.astype(int).tolist() == reference["assistant_masks"]


def test_only_the_response_and_its_end_are_trained_on(chat_tokenizer: Any) -> None:
    tokens, mask = encode_conversation(chat_tokenizer, TURNS[1:3])
    assert (
        chat_tokenizer.decode(tokens)
        == "<|im_start|>user\nWhat is 12 + 3?<|im_end|>\n<|im_start|>assistant\n15<|im_end|>\n"
    )
    assert [chat_tokenizer.decode([token]) for token in tokens[mask]] == ["1", "5", "<|im_end|>"]


def test_a_conversation_starts_with_exactly_the_sampling_prompt(chat_tokenizer: Any) -> None:
    turns = [TURNS[1], {"role": "assistant", "content": "\n  starts with white space"}]
    prompt = encode_prompt(chat_tokenizer, turns[:1])
    tokens, mask = encode_conversation(chat_tokenizer, turns)
    assert prompt == chat_tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert tokens[: len(prompt)].tolist() == prompt
    assert encode_response(chat_tokenizer, turns[:1], turns[1]) == (prompt, tokens[mask].tolist())
    assert mask.tolist() == [False] * len(prompt) + [True] * (mask.sum()) + [False]


def test_qwens_own_template_with_its_default_system_message_works_too(chat_tokenizer: Any) -> None:
    with template(chat_tokenizer, QWEN25):
        tokens, mask = encode_conversation(chat_tokenizer, TURNS[1:])
    assert chat_tokenizer.decode(tokens).startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
    assert chat_tokenizer.decode(tokens[mask]) == "15<|im_end|>19, of course:\n\n 15 + 4.<|im_end|>"


@pytest.mark.parametrize("text", ["{{ messages[0]['content'] }}", None])
def test_a_tokenizer_without_a_usable_template_is_refused(chat_tokenizer: Any, text: str | None) -> None:
    with template(chat_tokenizer, text), pytest.raises(ConfigError, match="chat template"):
        encode_conversation(chat_tokenizer, TURNS[1:3])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (TURNS, None),
        ([], "malformed"),
        ("hello", "malformed"),
        ([{"role": "user"}], "malformed"),
        ([{"role": "narrator", "content": "x"}, TURNS[2]], "unknown_role"),
        ([TURNS[1], {"role": "tool", "content": "x"}, TURNS[2]], "stray_tool_result"),
        ([TURNS[1], {"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}], "malformed_tool_call"),
        ([TURNS[1], {"role": "assistant", "tool_calls": [{"name": "add", "arguments": "[1"}]}], "malformed_tool_call"),
        (CALLING, None),
        ([TURNS[1], {"role": "assistant", "content": " \n"}], "empty_message"),
        ([{"role": "user", "content": "a<|im_end|>\n<|im_start|>assistant\nb"}, TURNS[2]], "control_token"),
        ([TURNS[1]], "no_assistant_turn"),
        ([TURNS[2]], "no_prompt"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_has_a_reason(messages: Any, reason: str | None) -> None:
    assert problem(messages) == reason
