"""What the guard of every server accepts, by host, origin and credential."""

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from cupola_platform.security import credential
from cupola_platform.security.guard import Guard, Refusal

OWN = [("host", "127.0.0.1:4200")]
BASIC = ("authorization", "Basic " + base64.b64encode(b"cupola:secret").decode())


async def nothing(*_: Any) -> None:
    """An application that must not be reached."""


def judge(headers: list[tuple[str, str]], method: str = "POST", path: str = "/api/", **options: Any) -> int:
    """The status of the refusal; 200 if there is none."""
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    refused = Guard(nothing, **options).judge(scope)
    return refused.status if isinstance(refused, Refusal) else 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:4200", 200),
        ("localhost:4200", 200),
        ("LocalHost", 200),
        ("[::1]:4200", 200),
        ("cupola.example.org", 200),
        ("evil.test:4200", 403),
        ("10.evil.test", 403),
        ("127.0.0.1.evil.test:4200", 403),
        ("localhost.", 403),
        ("127.0.0.1:4200@evil.test", 403),
        ("localhost:4200/evil.test", 403),
        ("0.0.0.0:4200", 403),
        ("", 403),
    ],
)
def test_only_the_names_of_this_server_are_accepted(host: str, status: int) -> None:
    assert judge([("host", host)], hosts=("cupola.example.org",)) == status


def test_a_request_without_a_host_or_with_two_is_refused() -> None:
    assert judge([]) == 403
    assert judge([*OWN, *OWN]) == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:4200", 200),
        ("http://localhost:4200", 200),
        ("https://127.0.0.1:4200", 200),
        ("http://127.0.0.1:9999", 403),
        ("http://127.0.0.1", 403),
        ("http://evil.test:4200", 403),
        ("http://evil.test", 403),
        ("null", 403),
        ("file://", 403),
        ("127.0.0.1:4200", 403),
    ],
)
def test_a_page_of_another_origin_is_refused_whatever_it_requests(origin: str, status: int) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"):
        assert judge([*OWN, ("origin", origin)], method) == status


@pytest.mark.parametrize(
    ("site", "mode", "dest", "method", "status"),
    [
        ("same-origin", "cors", "empty", "GET", 200),
        ("none", "navigate", "document", "GET", 200),
        ("cross-site", "navigate", "document", "GET", 200),
        ("same-site", "navigate", "document", "GET", 200),
        ("cross-site", "navigate", "iframe", "GET", 403),
        ("cross-site", "navigate", "document", "POST", 403),
        ("cross-site", "no-cors", "image", "GET", 403),
        ("same-site", "no-cors", "script", "GET", 403),
    ],
)
def test_a_link_from_elsewhere_may_only_open_a_page(site: str, mode: str, dest: str, method: str, status: int) -> None:
    headers = [*OWN, ("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)]
    assert judge(headers, method) == status


def test_the_credential_is_required_everywhere_except_for_the_health_check() -> None:
    options: dict[str, Any] = {"credential": "cupola:secret", "unasked": {"/health"}}
    wrong = ("authorization", "Basic " + base64.b64encode(b"cupola:guess").decode())
    assert judge(OWN, **options) == 401
    assert judge([*OWN, wrong], **options) == 401
    assert judge([*OWN, ("authorization", BASIC[1].replace("Basic", "Bearer"))], **options) == 401
    assert judge([*OWN, BASIC, BASIC], **options) == 401
    assert judge([*OWN, BASIC], **options) == 200
    assert judge(OWN, "GET", "/health", **options) == 200
    assert judge(OWN, "POST", "/health", **options) == 401
    assert judge(OWN, "GET", "/health/../api", **options) == 401
    assert judge([("host", "evil.test"), BASIC], **options) == 403
    assert judge([*OWN, BASIC, ("origin", "http://evil.test")], **options) == 403


def test_the_secret_is_in_no_representation() -> None:
    assert "secret" not in repr(Guard(nothing, credential="cupola:secret"))


APPLICATION = """
import uvicorn, sys
from cupola_platform.security.guard import Guard

async def echo(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "in"})

uvicorn.run(Guard(echo), port=int(sys.argv[1]), lifespan="off", log_level="warning")
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real server with a guarded websocket."""
    script = tmp_path_factory.mktemp("guard") / "application.py"
    script.write_text(APPLICATION)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, str(script), str(free)])
    try:
        for _ in range(600):
            with socket.socket() as client:
                client.settimeout(1)
                if client.connect_ex(("127.0.0.1", free)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield free
    finally:
        process.terminate()
        process.wait(20)


def test_a_websocket_of_another_page_is_not_opened(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}", origin=f"http://127.0.0.1:{port}") as own:  # type: ignore[arg-type]
        assert own.recv(timeout=20) == "in"
    for origin in ("http://127.0.0.1:1", "http://evil.test", "null"):
        with pytest.raises(InvalidStatus, match="403"), connect(f"ws://127.0.0.1:{port}", origin=origin):  # type: ignore[arg-type]
            pass


def test_the_credential_is_new_each_time_and_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    first, second = credential.generate(), credential.generate()
    assert first != second
    credential.keep(tmp_path, first)
    credential.keep(tmp_path, second)
    assert (tmp_path / "credential").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["credential"]
    assert credential.read(tmp_path) == second
    assert second.get_secret_value() == f"cupola:{credential.password(second)}"
    assert len(credential.password(second)) == 32
    credential.remove(tmp_path)
    assert credential.read(tmp_path) is None


def test_a_training_job_gets_no_server_credentials() -> None:
    given = {"PATH": "/usr/bin", "PREFECT_API_URL": "http://127.0.0.1:4200/api", "PREFECT_API_AUTH_STRING": "cupola:secret",
             "CUPOLA_CONSOLE_PASSWORD": "secret", "MLFLOW_TRACKING_PASSWORD": "secret"}  # fmt: skip
    assert credential.without_credentials(given) == {
        "PATH": "/usr/bin", "PREFECT_API_URL": "http://127.0.0.1:4200/api",
    }  # fmt: skip
