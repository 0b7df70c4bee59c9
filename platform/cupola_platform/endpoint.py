"""A model behind an OpenAI-compatible HTTP endpoint (vLLM, llama.cpp, a provider's): chat completions, with retries."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from cupola_platform.conversation import Message, for_template, normal
from cupola_platform.json_service import ask
from cupola_platform.strict import PublicUrl


@checked(frozen=True, kw_only=True, config={"extra": "forbid", "use_attribute_docstrings": True})
class EndpointConfig:
    """Where a model is served, and how to query it."""

    url: PublicUrl
    """Base URL, such as http://localhost:8000/v1; `/chat/completions` is appended. It must not contain a user, password
    or key, because recipes are stored and shown."""

    model: str = Field(min_length=1)
    """The model's name at the endpoint."""

    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key; if it is unset, no key is sent. The key itself is never stored."""

    concurrency: int = Field(default=4, ge=1)
    """Concurrent requests."""

    timeout: float = Field(default=120.0, gt=0)
    """Seconds to wait for one response."""

    retries: int = Field(default=5, ge=0)
    """Further attempts after rate limits, server errors and lost connections."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One response."""

    text: str
    finished: bool
    """Whether the model ended it; false if it was truncated."""
    tool_calls: tuple[Message, ...] = ()
    """Its tool calls, in the form of `conversation`."""


class Endpoint:
    """A client of the model."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config

    def complete(
        self, messages: Sequence[Message], *, temperature: float, max_new_tokens: int, seed: int, tools: Any = None
    ) -> Completion:
        """One response to a conversation.

        Args:
            tools: JSON schemas of the tools that the model may call.

        Raises:
            ConfigError: the endpoint refuses the request: a wrong key, model or setting.
            ServiceError: every attempt failed: no connection, or no valid response.
        """
        asked = {
            "model": self.config.model,
            "messages": _on_the_wire(messages),
            "temperature": temperature,
            "max_tokens": max_new_tokens,
            "seed": seed,
            **({"tools": tools} if tools else {}),
        }
        return ask(
            self.config.url.rstrip("/") + "/chat/completions",
            asked,
            _completion,
            key_variable=self.config.key_variable,
            timeout=self.config.timeout,
            retries=self.config.retries,
            name=self.config.url,
        )

    def map(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        temperature: float,
        max_new_tokens: int,
        seeds: Sequence[int],
        tools: Sequence[Any] | None = None,
    ) -> Iterator[Completion]:
        """Responses in order, from `concurrency` requests at a time. `tools` has one entry per conversation."""

        def ask(work: tuple[Sequence[Message], int, Any]) -> Completion:
            messages, seed, at_hand = work
            return self.complete(
                messages, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, tools=at_hand
            )

        with ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="endpoint") as threads:
            try:
                yield from threads.map(ask, zip(conversations, seeds, tools or [None] * len(seeds), strict=True))
            finally:
                threads.shutdown(cancel_futures=True)


def _completion(answer: Any) -> Completion:
    choice = answer["choices"][0]
    [message] = normal([{"role": "assistant", **choice["message"]}])
    text = message.get("content")
    if not isinstance(text, str):
        raise TypeError("the response has no text")
    calls = tuple({"type": "function", "function": call["function"]} for call in message.get("tool_calls", ()))
    return Completion(text, choice.get("finish_reason") != "length", calls)


def _on_the_wire(messages: Sequence[Message]) -> list[Message]:
    """Messages in OpenAI's wire format: calls have an id that their results repeat, and arguments as a JSON string."""
    sent: list[Message] = []
    waiting: list[str] = []
    for place, message in enumerate(for_template(messages)):
        if "tool_calls" in message:
            calls = [
                {
                    "id": f"call_{place}_{number}",
                    **call,
                    "function": {
                        **call["function"],
                        "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                    },
                }
                for number, call in enumerate(message["tool_calls"])
            ]
            waiting = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool":
            answered = waiting.pop(0) if waiting else f"call_{place}"
            message = {"tool_call_id": answered, **message}
        sent.append(message)
    return sent
