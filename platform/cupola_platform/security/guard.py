"""ASGI middleware that checks the host, the origin and the credential of every request to a server.

Browsers send requests from any web page to this machine's servers. Three headers that a page cannot forge reveal them:
`Host` (another name that resolves here is DNS rebinding), `Origin` and `Sec-Fetch-Site` (a page of another origin).
"""

import base64
import hmac
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?", re.IGNORECASE)


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused."""

    status: int
    reason: str


@dataclass(frozen=True)
class Guard:
    """An ASGI application that passes accepted requests on to another."""

    app: App
    hosts: Collection[str] = ()
    """The server's host names besides the loopback names."""
    credential: str | None = field(default=None, repr=False)
    """`user:password` for HTTP Basic; None if the application signs users in itself."""
    realm: str = "Cupola"
    unasked: Collection[str] = ()
    """Paths that can be read with GET without the credential, such as a health check."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 403 (websockets too), or 401 if the credential is missing or wrong."""
        refusal = self.judge(scope) if scope["type"] in {"http", "websocket"} else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.reason})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
            if refusal.status == 401:
                headers.append((b"www-authenticate", f'Basic realm="{self.realm}", charset="UTF-8"'.encode()))
            await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": f"{refusal.reason}\n".encode()})

    def judge(self, scope: Scope) -> Refusal | None:
        """Why this request is refused; None if it is accepted."""
        hosts = _headers(scope, b"host")
        asked = self._address(hosts[0]) if len(hosts) == 1 else None
        if asked is None:
            return Refusal(
                403,
                f"Host {', '.join(hosts)!r} is not a name of this server. Its operator can add it to "
                "CUPOLA_ALLOWED_HOSTS.",
            )
        if not self._from_own_page(scope, asked):
            return Refusal(403, "Refused: the request comes from a page of another origin.")
        if self.credential is not None and not self._may_enter(scope):
            return Refusal(401, "Sign in with this server's credential.")
        return None

    def _address(self, host: str) -> tuple[str, str] | None:
        """Name and port of an address of this server, with all loopback names as one; None for any other address."""
        match = _HOST.fullmatch(host)
        if match is None:
            return None
        name = match["name"].lower()
        if name in LOOPBACK:
            return "127.0.0.1", match["port"] or ""
        return (name, match["port"] or "") if name in self.hosts else None

    def _from_own_page(self, scope: Scope, asked: tuple[str, str]) -> bool:
        """Whether no page of another origin sent this. A link from elsewhere may open a page, but do nothing else."""
        origins = _headers(scope, b"origin")
        if origins:
            scheme, _, address = origins[0].partition("://")
            return len(origins) == 1 and scheme in {"http", "https"} and self._address(address) == asked
        if _headers(scope, b"sec-fetch-site") in ([], ["same-origin"], ["none"]):
            return True
        opens_a_page = (_headers(scope, b"sec-fetch-mode"), _headers(scope, b"sec-fetch-dest"))
        return scope.get("method") == "GET" and opens_a_page == (["navigate"], ["document"])

    def _may_enter(self, scope: Scope) -> bool:
        if scope.get("method") == "GET" and scope["path"] in self.unasked:
            return True
        assert self.credential is not None
        given = _headers(scope, b"authorization")
        wanted = base64.b64encode(self.credential.encode()).decode()
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        return scheme.lower() == "basic" and hmac.compare_digest(token.strip().encode(), wanted.encode())


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
