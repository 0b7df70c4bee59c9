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
"""Statuses after which asking again may help."""
LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""


@checked(frozen=True, kw_only=True, config={"extra": "forbid", "use_attribute_docstrings": True})
class EndpointConfig:
    """Where a model answers, and how to ask it."""

    url: str = Field(pattern=r"^https?://[^\s@?]+$")
    """Base address, such as http://localhost:8000/v1; `/chat/completions` is added. Recipes are kept and shown: it has
    no user, password or key in it."""

    model: str = Field(min_length=1)
    """The model's name there."""

    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without one none is sent. The key itself is written nowhere."""

    concurrency: int = Field(default=4, ge=1)
    """Requests at once."""

    timeout: float = Field(default=120.0, gt=0)
    """Seconds for one answer."""

    retries: int = Field(default=5, ge=0)
    """Tries after the first, on rate limits, server errors and lost connections."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer."""

    text: str
    finished: bool
    """The model ended it itself; false where the length cut it."""
    tool_calls: tuple[Message, ...] = ()
    """What it calls, as `conversation` has calls."""


class Endpoint:
    """Asks the model."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config

    def complete(
        self, messages: Sequence[Message], *, temperature: float, max_new_tokens: int, seed: int, tools: Any = None
    ) -> Completion:
        """One answer to a conversation.

        Args:
            tools: JSON schemas of what the model may call; none for nothing.

        Raises:
            ConfigError: the endpoint refuses the request: a wrong key, model or setting.
            ServiceError: it cannot be reached, or says no sense, after all tries.
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
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:  # lost, or no chat completion
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.config.retries:
                time.sleep(wait)
        raise ServiceError(
            f"{self.config.url} gave no answer in {self.config.retries + 1} tries; the last: {reason}. What was "
            "answered "
            "is kept: start the same command again."
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
        """Answers in order, `concurrency` of them asked at once. `tools` are those of each conversation."""

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
        raise TypeError("the answer has no text")
    calls = tuple({"type": "function", "function": call["function"]} for call in message.get("tool_calls", ()))
    return Completion(text, choice.get("finish_reason") != "length", calls)


def _on_the_wire(messages: Sequence[Message]) -> list[Message]:
    """Messages as OpenAI's interface has them: calls with an id, which their results name, and arguments as JSON's
    text."""
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
