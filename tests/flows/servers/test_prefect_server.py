"""Prefect's server as Cupola starts it, with and without the credential, and its work pool."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from cupola_flows.orchestration.refusals import ENTRYPOINT, refusal
from cupola_flows.servers.prefect_api import PrefectApi, own_prefect
from cupola_flows.servers.work_pool import MOST_RUNS, ensure_work_pool
from cupola_platform.settings import Settings

CREDENTIAL_SIZE = len("cupola:") + 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The server that `cupola run` starts by itself: its API and its process."""
    with own_prefect(Settings(home=tmp_path_factory.mktemp("prefect"))) as started:
        yield SimpleNamespace(api=started.wait(), pid=started.process.pid, log=started.log)


@pytest.fixture
def api(server: SimpleNamespace) -> PrefectApi:
    assert isinstance(server.api, PrefectApi)
    return server.api


def test_deployments_and_runs_need_the_credential(api: PrefectApi) -> None:
    for path in ("/flows/", "/deployments/", "/deployments/filter", "/work_pools/", "/flow_runs/"):
        for content_type in ({}, {"content-type": "application/json"}, {"content-type": "text/plain"}):
            answer = httpx.post(f"{api.url}{path}", content=b'{"name": "evil"}', headers=content_type, timeout=60)
            assert answer.status_code == 401, path
    with api.client(timeout=60) as client:
        assert client.post("/flows/filter", json={}).json() == []


def test_another_origin_or_host_is_refused_even_with_the_credential(api: PrefectApi) -> None:
    own = api.url.removeprefix("http://").removesuffix("/api")
    port = own.rpartition(":")[2]
    with api.client(timeout=60) as client:
        for header, value in (
            ("origin", "http://127.0.0.1:1"),
            ("origin", "http://evil.test"),
            ("origin", "null"),
            ("host", f"evil.test:{port}"),
            ("sec-fetch-site", "cross-site"),
        ):
            assert client.post("/flows/filter", json={}, headers={header: value}).status_code == 403, value
        same = client.post("/flows/filter", json={}, headers={"origin": f"http://localhost:{port}"})
        assert same.status_code == 200
        assert same.headers["access-control-allow-origin"] == f"http://localhost:{port}"


def test_the_credential_is_in_no_command_line_or_log_and_the_server_listens_on_loopback(
    server: SimpleNamespace,
) -> None:
    secret = server.api.credential.get_secret_value()
    assert len(secret) == CREDENTIAL_SIZE
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert [each for each in family if secret.partition(":")[2] in " ".join(each.cmdline())] == []
    assert secret.partition(":")[2] not in server.log.read_text()
    assert secret not in repr(server.api)
    listening = {at.laddr.ip for each in family for at in each.net_connections("inet") if at.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def test_the_pool_gets_its_limit_even_if_it_was_created_without_one(api: PrefectApi) -> None:
    with api.client(timeout=60) as client:
        made = client.post("/work_pools/", json={"name": "cupola", "type": "cupola"})
        assert made.status_code == 201
        assert made.json()["concurrency_limit"] is None
        ensure_work_pool(api)
        assert client.get("/work_pools/cupola").json()["concurrency_limit"] == MOST_RUNS
        client.delete("/work_pools/cupola")
        ensure_work_pool(api)
        assert client.get("/work_pools/cupola").json()["concurrency_limit"] == MOST_RUNS


def test_a_server_without_a_credential_is_not_started() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cupola_flows.servers.prefect_server", "--port", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "cupola: error: PREFECT_SERVER_API_AUTH_STRING is not set. Set it to user:password. Nothing was started.\n"
    )


def deployment(**other: Any) -> SimpleNamespace:
    ours: dict[str, Any] = {"entrypoint": ENTRYPOINT, "pull_steps": [], "path": None, "job_variables": {}}
    return SimpleNamespace(**{**ours, **other})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"entrypoint": "/tmp/evil.py:flow"}, "its deployment's entry point is /tmp/evil.py:flow"),
        ({"entrypoint": "os.system"}, "its deployment's entry point is os.system"),
        ({"entrypoint": None}, "its deployment's entry point is None"),
        ({"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "id"}}]},
        "its deployment has pull_steps"), ({"path": "/tmp/evil"}, "its deployment has path"),
        ({"job_variables": {"command": "id"}}, "its deployment has job_variables"),
        ({"job_variables": {"env": {"PYTHONPATH": "/tmp"}}}, "its deployment has job_variables"),
        ({"job_variables": {"working_dir": "/tmp"}}, "its deployment has job_variables"),
        ({"job_variables": {"image": "evil"}}, "its deployment has job_variables"),
    ],
)  # fmt: skip
def test_the_worker_refuses_deployments_of_anything_but_the_lifecycle(changed: dict[str, Any], reason: str) -> None:
    assert refusal(deployment(), SimpleNamespace(job_variables={})) is None
    assert refusal(deployment(**changed), SimpleNamespace(job_variables={})) == reason


def test_the_worker_refuses_a_run_with_job_variables_or_without_a_deployment() -> None:
    assert refusal(deployment(), SimpleNamespace(job_variables={"command": "id"})) == "its run has job_variables"
    assert refusal(None, SimpleNamespace(job_variables=None)) == "it belongs to no deployment"


@pytest.mark.slow  # `cupola deploy` imports Prefect again
def test_the_worker_accepts_what_deploy_registers(
    api: PrefectApi, tmp_path: Path, cupola: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.credential
    monkeypatch.setenv("CUPOLA_PREFECT_API_URL", api.url)
    monkeypatch.setenv("CUPOLA_PREFECT_API_AUTH_STRING", api.credential.get_secret_value())
    done = cupola("deploy", "smoke")
    assert done.returncode == 0, done.stderr
    with api.client(timeout=60) as client:
        found = client.get("/deployments/name/lifecycle/smoke").json()
    assert refusal(SimpleNamespace(**found), SimpleNamespace(job_variables=None)) is None
