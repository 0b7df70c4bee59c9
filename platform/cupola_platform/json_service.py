"""One question to a service over HTTP, as JSON, with retries."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from cupola_platform.errors import ConfigError, ServiceError

T = TypeVar("T")

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses worth retrying."""
LONGEST_WAIT = 60.0
"""Maximum seconds between two attempts."""


def ask(
    url: str,
    question: Any,
    read: Callable[[Any], T],
    *,
    key_variable: str,
    timeout: float,
    retries: int,
    name: str = "",
) -> T:
    """POST a question and return what `read` makes of the answer. An answer that it cannot read is asked for again.

    Args:
        read: raises ValueError, KeyError, TypeError or IndexError for an answer of another form.
        key_variable: environment variable with the key, sent as a bearer token if it is set.
        timeout: seconds to wait for an answer.
        retries: further attempts after rate limits, server errors, lost connections and unreadable answers.
        name: of the service in messages; its URL if empty.

    Raises:
        ConfigError: the service refuses the request: a wrong key or setting.
        ServiceError: every attempt failed.
    """
    name, reason = name or url, ""
    for attempt in range(retries + 1):
        wait = min(0.5 * 2**attempt, LONGEST_WAIT)
        try:
            return read(_post(url, question, key_variable, timeout))
        except urllib.error.HTTPError as error:
            with error:
                reason = f"status {error.code}: {_said(error)}"
                if error.code not in RETRIED:
                    raise ConfigError(f"{name} refuses the request, {reason}") from None
                wait = _told_to_wait(error.headers.get("Retry-After"), wait)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:  # lost, or not an answer
            reason = f"{type(error).__name__}: {error}"
        if attempt < retries:
            time.sleep(wait)
    raise ServiceError(
        f"{name} gave no response in {retries + 1} tries; the last: {reason}. Earlier responses are kept: start the "
        "same command again."
    )


def _post(url: str, question: Any, key_variable: str, timeout: float) -> Any:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(key_variable):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(question).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def _said(error: urllib.error.HTTPError) -> str:
    return " ".join(error.read(2000).decode(errors="replace").split())[:200]


def _told_to_wait(header: str | None, otherwise: float) -> float:
    try:
        return min(float(header or otherwise), LONGEST_WAIT)
    except ValueError:  # a date
        return otherwise
