"""The API server of a Kubernetes cluster, asked with this machine's credentials, and asked again while it is silent.

kr8s finds the credentials (a kubeconfig, its exec plugins, or a pod's service account) and renews them when the server
answers 401. Everything is a plain request: nothing is watched, so no watch can break.
"""

import asyncio
import functools
import json
import random
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from cupola_platform.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    import httpx
    import kr8s
    from kr8s.asyncio import Api as Client

T = TypeVar("T")

TIMEOUT = 30.0
"""Seconds for one answer."""
SILENCE = 300.0
"""Seconds without output after which a stream is opened again: its connection may be dead without a sign."""
PATIENCE = 15.0
"""Seconds for which a server that does not answer is asked again."""
TRY_AGAIN = {408, 410, 429, 500, 502, 503, 504}
LONGEST_WAIT = 10.0
"""Most seconds between two attempts."""
UNPACKED = re.compile(r"tmp[a-z0-9_]{8}")
"""Names of the temporary files into which kr8s unpacks a kubeconfig's certificates and keys, and leaves them."""
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, OSError, RuntimeError, yaml.YAMLError)
"""What kr8s raises for a kubeconfig that is not as it should be, or whose exec plugin fails."""


class ForbiddenError(ConfigError):
    """403: the server knows this user, who may not do that."""


class MissingError(ConfigError):
    """404: there is no object, kind or namespace by that name."""


class ConflictError(ConfigError):
    """409: there is one already, or it was changed meanwhile."""


class UnansweredError(ServiceError):
    """No answer, or one that asks to come back later, after `seconds` (None: as soon as we like)."""

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class Api:
    """One cluster's API server. Its methods may be called from any thread."""

    def __init__(self, cluster: str, context: str | None, namespace: str) -> None:
        self.cluster, self.context, self.namespace = cluster, context, namespace
        self._client: Client | None = None

    def request(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None, patience: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """One request's answer. `path` is that of the URL, such as `/api/v1/nodes`.

        Raises:
            MissingError, ConflictError: 404 and 409.
            ConfigError: the server refuses, or this machine has no credentials for it. One line.
            ServiceError: nothing answered for `patience` seconds; for `PATIENCE`, if it is None.
        """
        deadline = time.monotonic() + (PATIENCE if patience is None else patience)
        wait = 0.5
        while True:
            try:
                return run(self._once(method, path, body, query))
            except UnansweredError as error:
                wait = error.seconds if error.seconds is not None else min(wait * 2, LONGEST_WAIT)
                if time.monotonic() + wait > deadline:
                    raise ServiceError(str(error)) from None
                time.sleep(wait * random.uniform(0.8, 1.0))

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The lines of an answer as they come. Raises what `request` raises, at once."""
        import httpx

        patience = httpx.Timeout(TIMEOUT, read=SILENCE)
        async with self._answer("GET", path, params=query, timeout=patience, stream=True) as response:
            rest = b""
            async for chunk in response.aiter_raw():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line
            if rest:
                yield rest

    async def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(TIMEOUT), self._answer(method, path, params=query, json=body) as response:
                answer: dict[str, Any] = response.json()
                return answer
        except json.JSONDecodeError:
            raise ConfigError(
                f"Cluster {self.cluster}: what answers {method} {path} is no Kubernetes API server. Correct the server "
                "in the kubeconfig."
            ) from None
        except TimeoutError:
            self._client = None
            raise UnansweredError(
                f"Cluster {self.cluster}: the API server does not answer {method} {path} within {TIMEOUT:.0f} s."
            ) from None

    @asynccontextmanager
    async def _answer(self, method: str, path: str, **options: Any) -> "AsyncIterator[httpx.Response]":
        """One answer of the server, with every error in our words."""
        import httpx
        import kr8s

        client = await self.client()
        base, _, url = path.removeprefix("/").partition("/")
        if method == "PATCH":
            options["headers"] = {"Content-Type": "application/merge-patch+json"}
        try:
            async with client.call_api(method, version="", base=f"/{base}", url=url, **options) as response:
                self._tidy(client)
                yield response
        except kr8s.ServerError as error:
            raise self._refusal(error) from None
        except (httpx.HTTPError, kr8s.APITimeoutError, OSError, LookupError, RuntimeError, yaml.YAMLError) as error:
            self._client = None  # the next request reads the kubeconfig again
            why = " ".join(str(error).split()).rstrip(".") or "it took too long"
            raise UnansweredError(
                f"Cluster {self.cluster}: the API server at {client.auth.server} does not answer: {why}. Check the "
                "network and the kubeconfig."
            ) from None
        finally:
            self._tidy(client)

    async def client(self) -> "Client":
        """kr8s's client, which is made when it is first needed: importing it takes a second."""
        if self._client is None:
            from kr8s.asyncio import Api as Client

            # kr8s's factory would ask for the version first, and without a time limit.
            client = Client(bypass_factory=True, context=self.context, namespace=self.namespace)
            try:
                await client.auth
            except UNREADABLE as error:
                why = " ".join(str(error).split()) or type(error).__name__
                raise ConfigError(
                    f"Cluster {self.cluster}: no credentials for Kubernetes: {why}. Correct the kubeconfig "
                    f"(kubectl config get-contexts), or clusters.{self.cluster}.context."
                ) from None
            self._client = client
        return self._client

    @staticmethod
    def _tidy(client: "Client") -> None:
        """Remove the certificates that kr8s unpacked into temporary files, once they were read."""
        auth = client.auth
        for path in (auth.client_key_file, auth.client_cert_file, auth.server_ca_file):
            file = Path(str(path))
            if file.parent == Path(tempfile.gettempdir()) and UNPACKED.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def _refusal(self, error: "kr8s.ServerError") -> Exception:
        response, where = error.response, f"Cluster {self.cluster}: the API server"
        status = response.status_code if response is not None else 500
        message = str(error)
        if status >= 500 and response is not None:  # kr8s has only httpx's words then
            with suppress(*UNREADABLE):
                message = response.json()["message"]
        message = " ".join(message.split()).rstrip(".")
        if status in TRY_AGAIN:
            later = response.headers.get("retry-after", "") if response is not None else ""
            seconds = min(float(later), LONGEST_WAIT) if later.isdecimal() else None
            return UnansweredError(f"{where} answers {status}: {message}.", seconds)
        if status == 401:
            return ConfigError(f"{where} does not accept your credentials (401). Log in again.")
        if status == 403:
            return ForbiddenError(f"{where} forbids it: {message}. Ask for a role that allows this: docs/clusters.md.")
        kinds: dict[int, type[ConfigError]] = {404: MissingError, 409: ConflictError}
        return kinds.get(status, ConfigError)(f"{where} refuses: {message}.")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="kubernetes", daemon=True).start()
    return loop


def start(coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
    """Run a coroutine in the one thread that talks to API servers."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that `start` runs."""
    return start(coroutine).result()
