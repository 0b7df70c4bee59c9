"""Conversations as tokens: any Hugging Face chat template, and which tokens are the assistant's. Imports no torch.

The tokenizer's own chat template is the truth, so training reads exactly what sampling will prompt with. In ChatML:

    <|im_start|>user\\nHow are you?<|im_end|>\\n<|im_start|>assistant\\nFine.<|im_end|>\\n
    0            0                 0         0                       1    1          0
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cupola_platform.errors import ConfigError

CONTROL_TOKENS = frozenset({"<|im_start|>", "<|im_end|>", "<|endoftext|>"})
"""ChatML's, for texts that no tokenizer has been chosen for yet."""
ROLES = frozenset({"system", "user", "assistant", "tool"})
PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]

Message = Mapping[str, Any]


class RefusedByTemplateError(ConfigError):
    """A chat template does not take a conversation: Gemma's has no system role, for instance."""


class ChatTokenizer(Protocol):
    """What we need of a transformers tokenizer."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def apply_chat_template(
        self, conversation: Any, *, tools: Any = ..., tokenize: bool, add_generation_prompt: bool = ...
    ) -> Any: ...


def problem(messages: Any, control_tokens: Collection[str] = CONTROL_TOKENS) -> str | None:
    """Why a conversation cannot be learnt from, as a short name to count drops by; None when it can.

    "malformed", "unknown_role", "empty_message", "control_token" (its text would close a turn), "malformed_tool_call",
    "stray_tool_result" (no assistant asked for it), "no_assistant_turn", "no_question".
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return "malformed"
    called = False
    for message in messages:
        if reason := _problem_of(message, control_tokens):
            return reason
        if message["role"] == "tool" and not called:
            return "stray_tool_result"
        called = bool(message.get("tool_calls")) if message["role"] != "tool" else called
    if messages[-1]["role"] != "assistant":
        return "no_assistant_turn"
    return None if messages[0]["role"] != "assistant" else "no_question"


def _problem_of(message: Any, control_tokens: Collection[str]) -> str | None:
    if not isinstance(message, Mapping):
        return "malformed"
    calls, content = message.get("tool_calls") or [], message.get("content")
    if not isinstance(content, str) and not (content is None and calls):
        return "malformed"
    if message.get("role") not in ROLES:
        return "unknown_role"
    if not isinstance(calls, list) or not all(map(_is_call, calls)) or (calls and message["role"] != "assistant"):
        return "malformed_tool_call"
    if not (content or "").strip() and not calls and message["role"] != "tool":  # a tool may return nothing
        return "empty_message"
    text = (content or "") + json.dumps(calls, ensure_ascii=False)
    return "control_token" if any(token in text for token in control_tokens) else None


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return False
    return isinstance(_arguments(function.get("arguments")), Mapping)


def _arguments(value: Any) -> Any:
    """A call's arguments: an object, or the JSON of one, as OpenAI's interface has it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return None


def control_tokens(tokenizer: ChatTokenizer) -> frozenset[str]:
    """The tokenizer's special tokens, which no text may hold."""
    return frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


def turn_end(tokenizer: ChatTokenizer) -> str:
    """What ends an assistant's words, up to its last control token: "<|im_end|>" in ChatML.

    Raises:
        ConfigError: there is no usable template, or the tokenizer knows no control token that ends a turn in it.
    """
    prompt, whole = _render(tokenizer, PROBE[:1], prompt=True), _render(tokenizer, PROBE)
    if not whole.startswith(prompt + "answer"):
        raise ConfigError(
            "The tokenizer's chat template does not put an assistant's words after its generation prompt. Use ChatML, or "
            "another template that does."
        )
    rest = whole[len(prompt + "answer") :]
    end = _learnt(rest, control_tokens(tokenizer))
    if not end:
        raise ConfigError(
            f"The tokenizer's chat template ends an assistant's words with {rest!r}, of which the tokenizer knows no control "
            "token: a model could not learn to stop. Add it as a special token, or use another template."
        )
    return end


def encode_prompt(tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any = None) -> list[int]:
    """Token ids of a conversation up to where the assistant's next words begin."""
    return _encode(tokenizer, _render(tokenizer, messages, tools, prompt=True))


def encode_answer(tokenizer: ChatTokenizer, answer: str) -> list[int]:
    """Token ids of an assistant's words and the control token that ends them."""
    return _encode(tokenizer, answer + turn_end(tokenizer))


def encode_conversation(
    tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any = None
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Token ids [n] of a whole conversation, and mask [n]: true where the token is the assistant's to say.

    True on an answer, its tool calls, and the control token that ends it, for every assistant turn. A prompt and its answer
    are encoded apart, as in sampling, so that no token reaches over the border.

    Args:
        tools: what the assistant may call: JSON schemas of functions, for the template; none for nothing.

    Raises:
        RefusedByTemplateError: the template does not take this conversation.
        ConfigError: the template's turns cannot be told apart.
    """
    control = control_tokens(tokenizer)
    tokens: list[int] = []
    mask: list[bool] = []
    done = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:turn], tools, prompt=True)
        whole = _render(tokenizer, messages[: turn + 1], tools)
        words = _learnt(whole[len(prompt) :], control)
        if not whole.startswith(prompt) or not prompt.startswith(done) or not words:
            turn_end(tokenizer)  # says it where the template is at fault in general
            raise ConfigError(
                f"The tokenizer's chat template rewrites earlier turns once there are {turn + 1}, so that what was said cannot "
                "be learnt as it was prompted. Use a template that only adds."
            )
        if not all(call.get("function", call)["name"] in words for call in message.get("tool_calls") or ()):
            raise RefusedByTemplateError(
                "The tokenizer's chat template does not write tool calls. Take one that does, as Qwen2.5's."
            )
        for text, learnt in ((prompt[len(done) :], False), (words, True)):
            ids = _encode(tokenizer, text)
            tokens += ids
            mask += [learnt] * len(ids)
        done = prompt + words
    rest = _encode(tokenizer, _render(tokenizer, messages, tools)[len(done) :])
    return np.array(tokens + rest, dtype=np.int64), np.array(mask + [False] * len(rest), dtype=np.bool_)


def _learnt(text: str, control: Collection[str]) -> str:
    """An assistant's turn without what follows its last control token."""
    return text[: max((text.rfind(token) + len(token) for token in control if token in text), default=0)]


def _encode(tokenizer: ChatTokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _render(tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any = None, *, prompt: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    plain = [_plain(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tools=tools, tokenize=False, add_generation_prompt=prompt)
    except ValueError as error:
        raise ConfigError(f"The tokenizer has no usable chat template: {error}") from error
    except TemplateError as error:
        raise RefusedByTemplateError(f"The tokenizer's chat template refuses a conversation: {error}.") from error
    return str(text)


def _plain(message: Message) -> dict[str, Any]:
    """As templates read it: tool calls' arguments as objects."""
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    functions = [call.get("function", call) for call in calls]
    whole = [
        {"type": "function", "function": {**function, "arguments": _arguments(function["arguments"])}}
        for function in functions
    ]
    return {**message, "content": message.get("content") or "", "tool_calls": whole}
