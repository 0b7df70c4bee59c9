"""Conversations as tokens and loss mask, with any Hugging Face chat template. Imports no torch.

This is the only place that renders the tokenizer's chat template, so training reads exactly what sampling, scoring and
evaluation prompt with, tools included. In ChatML:

    <|im_start|>user\\nHow are you?<|im_end|>\\n<|im_start|>assistant\\nFine.<|im_end|>\\n
    0            0                 0         0                       1    1          0
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cupola_platform.conversation import Message, for_template, holds_control_token, normal_tools
from cupola_platform.errors import ConfigError
from cupola_trainer.data.dates import MissingDateError, dated

PROBE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


class RefusedError(ConfigError):
    """A conversation cannot be encoded. `reason` is the key that it is counted under."""

    reason = "refused"


class RefusedByTemplateError(RefusedError):
    """The chat template rejects the conversation: Gemma's has no system role, for instance."""

    reason = "refused_by_template"


class ControlTokenError(RefusedError):
    """A text in the conversation or its tools contains a control token, which would close a turn."""

    reason = "control_token"


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that we use."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...
    @property
    def init_kwargs(self) -> Mapping[str, Any]: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def get_chat_template(self, chat_template: str | None = ..., tools: Any = ...) -> str: ...
    def apply_chat_template(
        self,
        conversation: Any,
        *,
        tools: Any = ...,
        chat_template: str = ...,
        tokenize: bool,
        add_generation_prompt: bool = ...,
        **variables: Any,
    ) -> Any: ...


def control_tokens(tokenizer: ChatTokenizer) -> frozenset[str]:
    """The tokenizer's special tokens, which no text may contain."""
    return frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


def turn_end(tokenizer: ChatTokenizer) -> str:
    """The end of an assistant turn, up to its last control token: "<|im_end|>" in ChatML.

    Raises:
        ConfigError: there is no usable template, it needs a date and none is set, or it does not end turns with a
            control token of the tokenizer.
    """
    prompt, whole = _render(tokenizer, PROBE[:1], prompt=True), _render(tokenizer, PROBE)
    if not whole.startswith(prompt + "answer"):
        raise ConfigError(
            "The tokenizer's chat template does not continue its generation prompt with the response. Use ChatML, "
            "or another template that does."
        )
    rest = whole[len(prompt + "answer") :]
    end = _trained_part(rest, control_tokens(tokenizer))
    if not end:
        raise ConfigError(
            f"The tokenizer's chat template ends responses with {rest!r}, which holds no control token "
            "of the tokenizer: a model could not learn to stop. Add one as a special token, or use another template."
        )
    return end


def encode_prompt(tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any = None) -> list[int]:
    """Token ids of a conversation up to the start of the assistant's next turn.

    Args:
        tools: JSON schemas of the functions that the assistant may call; None for no tools.

    Raises:
        RefusedError: the conversation cannot be encoded; the class gives the reason.
        ConfigError: there is no usable template, or it needs a date and none is set.
    """
    messages, tools = _checked(tokenizer, messages, tools)
    return _encode(tokenizer, _render(tokenizer, messages, tools, prompt=True))


def encode_response(
    tokenizer: ChatTokenizer, messages: Sequence[Message], response: Message, tools: Any = None
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, and of the response including the control token that ends it.

    The response is rendered by the template, trimmed where the template trims: the same tokens that
    `encode_conversation` masks as the assistant's.

    Raises:
        RefusedError, ConfigError: as `encode_conversation`.
    """
    messages, tools = _checked(tokenizer, [*messages, response], tools)
    prompt, words = _turn(tokenizer, messages, tools, control_tokens(tokenizer))
    return _encode(tokenizer, prompt), _encode(tokenizer, words)


def encode_conversation(
    tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any = None
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Token ids [n] of a whole conversation, and its loss mask [n].

    The mask is true on every assistant turn: the response, its tool calls, and the control token that ends it. Prompt
    and response are encoded separately, as in sampling, so no token spans the boundary.

    Args:
        tools: JSON schemas of the functions that the assistant may call; None for no tools.

    Raises:
        RefusedError: the conversation cannot be encoded; the class gives the reason.
        ConfigError: the template's turns cannot be separated, or it needs a date and none is set.
    """
    messages, tools = _checked(tokenizer, messages, tools)
    control = control_tokens(tokenizer)
    tokens: list[int] = []
    mask: list[bool] = []
    done = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, words = _turn(tokenizer, messages[: turn + 1], tools, control, done)
        for text, trained in ((prompt[len(done) :], False), (words, True)):
            ids = _encode(tokenizer, text)
            tokens += ids
            mask += [trained] * len(ids)
        done = prompt + words
    rest = _encode(tokenizer, _render(tokenizer, messages, tools)[len(done) :])
    return np.array(tokens + rest, dtype=np.int64), np.array(mask + [False] * len(rest), dtype=np.bool_)


def _turn(
    tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any, control: Collection[str], done: str = ""
) -> tuple[str, str]:
    """The last message's prompt, and its text up to the last control token, as the template renders them.

    Args:
        done: the rendering of earlier turns, which the prompt must start with.
    """
    prompt = _render(tokenizer, messages[:-1], tools, prompt=True)
    whole = _render(tokenizer, messages, tools)
    words = _trained_part(whole[len(prompt) :], control)
    if not whole.startswith(prompt) or not prompt.startswith(done) or not words:
        turn_end(tokenizer)  # raises if the template is unusable in general
        raise ConfigError(
            f"The tokenizer's chat template rewrites earlier turns once there are {len(messages)}, so training "
            "would not see what sampling prompts with. Use a template that only appends."
        )
    if not all(call["function"]["name"] in words for call in messages[-1].get("tool_calls", ())):
        raise RefusedByTemplateError(
            "The tokenizer's chat template does not render tool calls. Use one that does, such as Qwen2.5's."
        )
    return prompt, words


def _trained_part(text: str, control: Collection[str]) -> str:
    """An assistant turn up to its last control token."""
    return text[: max((text.rfind(token) + len(token) for token in control if token in text), default=0)]


def _encode(tokenizer: ChatTokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _checked(tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any) -> tuple[list[dict[str, Any]], Any]:
    """Messages and tools in the form that templates expect; no tools as None, which templates test for."""
    plain, tools = for_template(messages), normal_tools(tools) or None
    if holds_control_token([plain, tools], control_tokens(tokenizer)):
        raise ControlTokenError(
            "A message, call or tool contains one of the tokenizer's control tokens, which would close a turn. Remove "
            "it."
        )
    return plain, tools


def _render(tokenizer: ChatTokenizer, messages: Sequence[Message], tools: Any = None, *, prompt: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    try:
        template, variables = dated(
            tokenizer.get_chat_template(None, tools), tokenizer.init_kwargs.get("template_date")
        )
        text = tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt, **variables
        )
    except ValueError as error:
        raise ConfigError(f"The tokenizer has no usable chat template: {error}") from error
    except RecursionError:
        raise RefusedByTemplateError(
            "A call or a tool of the conversation is nested too deeply for the chat template. Flatten it."
        ) from None
    except TemplateError as error:
        if MissingDateError.is_meant_by(error):
            raise MissingDateError from None
        raise RefusedByTemplateError(f"The tokenizer's chat template rejects a conversation: {error}.") from error
    return str(text)
