"""A model behind an OpenAI-compatible HTTP endpoint (vLLM, llama.cpp, a provider's): chat completions, with retries."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from cupola_platform.conversation import Message, for_template, normal
from cupola_platform.errors import ConfigError, ServiceError

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses worth retrying."""
LONGEST_WAIT = 60.0
"""Maximum seconds between two attempts."""


@checked(frozen=True, kw_only=True, config={"extra": "forbid", "use_attribute_docstrings": True})
class EndpointConfig:
    """Where a model is served, and how to query it."""

    url: str = Field(pattern=r"^https?://[^\s@?]+$")
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
        reason = ""
        for attempt in range(self.config.retries + 1):
            wait = min(0.5 * 2**attempt, LONGEST_WAIT)
            try:
                return _completion(self._post(asked))
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"status {error.code}: {_said(error)}"
                    if error.code not in RETRIED:
                        raise ConfigError(f"{self.config.url} refuses the request, {reason}") from None
                    wait = _told_to_wait(error.headers.get("Retry-After"), wait)
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:  # lost, or not a completion
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.config.retries:
                time.sleep(wait)
        raise ServiceError(
            f"{self.config.url} gave no response in {self.config.retries + 1} tries; the last: {reason}. Earlier "
            "responses are kept: start the same command again."
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

    def _post(self, asked: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.config.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.config.url.rstrip("/") + "/chat/completions", json.dumps(asked).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=self.config.timeout) as answer:
            return json.load(answer)


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


def _said(error: urllib.error.HTTPError) -> str:
    return " ".join(error.read(2000).decode(errors="replace").split())[:200]


def _told_to_wait(header: str | None, otherwise: float) -> float:
    try:
        return min(float(header or otherwise), LONGEST_WAIT)
    except ValueError:  # a date
        return otherwise
