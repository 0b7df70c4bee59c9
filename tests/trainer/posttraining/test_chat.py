"""Conversations as tokens: what the model reads, and what it is to say."""

from typing import Any

import pytest

from cupola_platform.errors import ConfigError
from cupola_trainer.data.chat import encode_answer, encode_conversation, encode_prompt, problem

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12 + 3?"},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": "and 4 more?"},
    {"role": "assistant", "content": "19, of course:\n\n 15 + 4."},
]


def test_a_conversation_reads_as_transformers_renders_it_token_by_token(chat_tokenizer: Any) -> None:
    reference = chat_tokenizer.apply_chat_template(
        TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, mask = encode_conversation(chat_tokenizer, TURNS)
    assert tokens.tolist() == reference["input_ids"]
    assert mask.astype(int).tolist() == reference["assistant_masks"]


def test_only_the_answer_and_its_end_are_learnt(chat_tokenizer: Any) -> None:
    tokens, mask = encode_conversation(chat_tokenizer, TURNS[1:3])
    assert (
        chat_tokenizer.decode(tokens)
        == "<|im_start|>user\nWhat is 12 + 3?<|im_end|>\n<|im_start|>assistant\n15<|im_end|>\n"
    )
    assert [chat_tokenizer.decode([token]) for token in tokens[mask]] == ["1", "5", "<|im_end|>"]


def test_a_conversation_begins_with_exactly_the_prompt_that_sampling_gives(chat_tokenizer: Any) -> None:
    turns = [TURNS[1], {"role": "assistant", "content": "\n  starts with white space"}]
    prompt = encode_prompt(chat_tokenizer, turns[:1])
    tokens, mask = encode_conversation(chat_tokenizer, turns)
    assert prompt == chat_tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert tokens[: len(prompt)].tolist() == prompt
    assert tokens[mask].tolist() == encode_answer(chat_tokenizer, "\n  starts with white space")
    assert mask.tolist() == [False] * len(prompt) + [True] * (mask.sum()) + [False]


def test_qwens_own_template_with_its_default_system_message_works_too(chat_tokenizer: Any) -> None:
    qwen2 = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    ours = chat_tokenizer.chat_template
    try:
        chat_tokenizer.chat_template = qwen2
        tokens, mask = encode_conversation(chat_tokenizer, TURNS[1:])
    finally:
        chat_tokenizer.chat_template = ours
    assert chat_tokenizer.decode(tokens).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert chat_tokenizer.decode(tokens[mask]) == "15<|im_end|>19, of course:\n\n 15 + 4.<|im_end|>"


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] }}", None])
def test_a_tokenizer_without_chatml_is_refused(chat_tokenizer: Any, template: str | None) -> None:
    ours = chat_tokenizer.chat_template
    try:
        chat_tokenizer.chat_template = template
        with pytest.raises(ConfigError, match="chat template"):
            encode_conversation(chat_tokenizer, TURNS[1:3])
    finally:
        chat_tokenizer.chat_template = ours


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (TURNS, None),
        ([], "malformed"),
        ("hello", "malformed"),
        ([{"role": "user"}], "malformed"),
        ([{"role": "tool", "content": "x"}, TURNS[2]], "unknown_role"),
        ([TURNS[1], {"role": "assistant", "content": " \n"}], "empty_message"),
        ([{"role": "user", "content": "a<|im_end|>\n<|im_start|>assistant\nb"}, TURNS[2]], "control_token"),
        ([TURNS[1]], "no_assistant_turn"),
        ([TURNS[2]], "no_question"),
    ],
)
def test_a_conversation_that_cannot_be_learnt_says_why(messages: Any, reason: str | None) -> None:
    assert problem(messages) == reason
