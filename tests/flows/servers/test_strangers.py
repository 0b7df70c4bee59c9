"""Attacks on the servers of `cupola up` get nothing: pages of other origins, DNS rebinding, and local users without the
credential. A person with the credential gets in."""

import base64
import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, Page, Playwright, expect

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # all servers with new databases, and a browser

ATTACK = """async ([prefect, mlflow, console, marker]) => {
  const done = {}
  const attempt = async (name, work) => { try { done[name] = await work() } catch (error) { done[name] = 'refused' } }
  const send = async (path, body, options = {}) => {
    const answer = await fetch(prefect + '/api' + path, {
      method: 'POST', body: JSON.stringify(body), headers: {'content-type': 'application/json'}, ...options})
    return answer.json()
  }
  const script = {'prefect.deployments.steps.run_shell_script': {script: 'touch ' + marker}}
  await attempt('a run through the API', async () => {
    const flow = await send('/flows/', {name: 'evil'})
    const deployment = await send('/deployments/', {name: 'evil', flow_id: flow.id, work_pool_name: 'cupola',
      entrypoint: 'os.system', job_variables: {command: 'touch ' + marker}, pull_steps: [script]})
    return (await send(`/deployments/${deployment.id}/create_flow_run`, {})).id
  })
  await attempt('reading', async () => (await fetch(prefect + '/api/flows/filter', {method: 'POST'})).status)
  for (const [name, url, body] of [['prefect', prefect + '/api/flows/', {name: 'blind'}],
      ['mlflow', mlflow + '/api/2.0/mlflow/experiments/create', {name: 'blind'}],
      ['mlflow page', mlflow + '/ajax-api/2.0/mlflow/experiments/create', {name: 'blind'}]]) {
    for (const blob of [new Blob([JSON.stringify(body)]), new Blob([JSON.stringify(body)], {type: 'text/plain'})])
      await attempt('sent blindly to ' + name, async () =>
        (await fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include', body: blob})).type)
    const frame = Object.assign(document.createElement('iframe'), {name: 'hidden'})
    const form = Object.assign(document.createElement('form'),
      {method: 'POST', action: url, enctype: 'text/plain', target: 'hidden'})
    form.append(Object.assign(document.createElement('input'),
      {name: JSON.stringify(body).slice(0, -1) + ',"x":"', value: '"}'}))
    document.body.append(frame, form)
    form.submit()
  }
  await attempt('an artifact', async () => (await fetch(mlflow + '/api/2.0/mlflow-artifacts/artifacts/0/planted.txt',
    {method: 'PUT', credentials: 'include', body: 'x'})).status)
  for (const [name, url, protocols] of [['prefect', prefect + '/api/events/out', ['prefect']],
      ['console', console + '/_stcore/stream', ['streamlit']]])
    await attempt('a websocket of ' + name, () => new Promise((opened, failed) => {
      const socket = new WebSocket(url.replace('http', 'ws'), protocols)
      socket.onopen = () => opened('open')
      socket.onerror = () => failed()
    }))
  return done
}"""


@dataclass(frozen=True)
class Served:
    """The servers of one workspace, with requests by its owner."""

    cupola: Any
    urls: dict[str, str]
    pids: list[int]

    @property
    def credential(self) -> str:
        return str((self.cupola.workspace / "credential").read_text().strip())

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": "Basic " + base64.b64encode(self.credential.encode()).decode()}

    def prefect(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Request Prefect's API; retries a busy server."""
        for _ in range(30):
            url, method = f"{self.urls['prefect']}/api{path}", "GET" if body is None else "POST"
            answer = httpx.request(method, url, json=body, headers=self.headers, timeout=60)
            if answer.status_code != 503:
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json()

    def run_of(self, deployment: dict[str, Any], **body: Any) -> str:
        """Create a deployment and a flow run of it."""
        flow = self.prefect("/flows/", {"name": "lifecycle"})["id"]
        made = self.prefect("/deployments/", {"flow_id": flow, "work_pool_name": "cupola", **deployment})
        return str(self.prefect(f"/deployments/{made['id']}/create_flow_run", body)["id"])


@pytest.fixture(scope="module")
def served(new_command: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    cupola = new_command(tmp_path_factory.mktemp("strangers") / "home")
    started = cupola("up", "--json", timeout=500)
    assert started.returncode == 0, started.stderr
    rows = json.loads(started.stdout)
    try:
        yield Served(cupola, {row["service"]: row["url"] for row in rows}, [row["pid"] for row in rows])
    finally:
        cupola("down")


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium, which resolves two foreign names to this machine."""
    expect.set_options(timeout=60_000)
    rules = "--host-resolver-rules=MAP evil.test 127.0.0.1, MAP 10.evil.test 127.0.0.1"
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
    yield opened
    opened.close()


def command_line(process: psutil.Process) -> list[str]:
    """Command line of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return []


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[int]:
    """The port of another server on this machine, which serves a page."""
    (tmp_path / "index.html").write_text("<title>elsewhere</title>")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            """Keep the test output quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield int(server.server_address[1])
    server.shutdown()


def test_servers_listen_on_loopback_only_and_no_command_line_or_log_has_the_secret(served: Served) -> None:
    secret = served.credential.partition(":")[2]
    family = {
        process
        for pid in served.pids
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    }
    listening = {at.laddr.ip for each in family for at in each.net_connections("inet") if at.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    assert [each for each in family if secret in " ".join(command_line(each))] == []
    workspace = served.cupola.workspace
    assert (workspace / "credential").stat().st_mode & 0o777 == 0o600
    written = [file for folder in ("logs", "pids") for file in (workspace / folder).iterdir()]
    assert len(written) >= 10
    assert [file for file in written if secret in file.read_text()] == []
    assert secret not in served.cupola("up").stdout
    assert secret in served.cupola("up", "--show-credential").stdout


def test_a_local_user_without_the_credential_reads_and_changes_nothing(served: Served) -> None:
    prefect, mlflow, console = (served.urls[name] for name in ("prefect", "mlflow", "console"))
    for method, url in (
        ("POST", f"{prefect}/api/deployments/filter"),
        ("POST", f"{prefect}/api/flows/"),
        ("GET", f"{prefect}/api/admin/settings"),
        ("GET", f"{mlflow}/"),
        ("GET", f"{mlflow}/version"),
        ("GET", f"{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"),
        ("POST", f"{mlflow}/api/2.0/mlflow/experiments/create"),
        ("GET", f"{mlflow}/ajax-api/2.0/mlflow/experiments/search?max_results=1"),
        ("POST", f"{mlflow}/graphql"),
        ("PUT", f"{mlflow}/api/2.0/mlflow-artifacts/artifacts/0/planted.txt"),
        ("GET", f"{mlflow}/get-artifact?path=x&run_uuid=y"),
    ):
        assert httpx.request(method, url, content=b'{"name": "x"}', timeout=60).status_code == 401, url
        assert httpx.request(method, url, auth=("cupola", "guess"), timeout=60).status_code == 401, url
    for url in (prefect, mlflow, console):
        for host in ("evil.test", "10.evil.test", "192.168.1.evil.test"):
            refused = httpx.get(url, headers={"host": host, **served.headers}, timeout=60)
            assert refused.status_code == 403, (url, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.test"])
def test_a_page_of_another_origin_starts_nothing_and_reads_nothing(
    served: Served, browser: Browser, foreign: int, tmp_path: Path, host: str
) -> None:
    marker = tmp_path / "owned"
    user, _, password = served.credential.partition(":")
    # A browser that has signed in to MLflow adds the credential to every request, whichever page makes it.
    context = browser.new_context(http_credentials={"username": user, "password": password})
    page = context.new_page()
    signed_in = page.goto(served.urls["mlflow"])
    assert signed_in
    assert signed_in.status == 200
    page.goto(f"http://{host}:{foreign}/index.html")
    urls = [served.urls[name] for name in ("prefect", "mlflow", "console")]
    done = page.evaluate(ATTACK, [*urls, str(marker)])
    page.wait_for_timeout(5000)  # for the forms, and for the worker's next poll of its pool
    context.close()
    assert {name for name, what in done.items() if what != "refused"} <= {
        "sent blindly to prefect", "sent blindly to mlflow", "sent blindly to mlflow page",
    }, done  # fmt: skip
    assert not marker.exists()
    names = {flow["name"] for flow in served.prefect("/flows/filter", {})}
    assert names & {"evil", "blind"} == set()
    found = httpx.get(
        f"{served.urls['mlflow']}/api/2.0/mlflow/experiments/search?max_results=100", headers=served.headers, timeout=60
    )
    assert {experiment["name"] for experiment in found.json()["experiments"]} <= {"Default", "cupola"}


@pytest.mark.parametrize("name", ["evil.test", "10.evil.test"])
def test_a_foreign_name_that_resolves_to_this_machine_gets_no_page(served: Served, browser: Browser, name: str) -> None:
    user, _, password = served.credential.partition(":")
    context = browser.new_context(http_credentials={"username": user, "password": password})
    page = context.new_page()
    for service in ("prefect", "mlflow", "console"):
        answer = page.goto(served.urls[service].replace("127.0.0.1", name))
        assert answer
        assert answer.status == 403, service
        assert page.evaluate("fetch('/api/flows/filter', {method: 'POST'}).then(answer => answer.status)") == 403
    context.close()


def test_a_person_with_the_credential_signs_in_to_all_three(served: Served, browser: Browser) -> None:
    user, _, password = served.credential.partition(":")
    context = browser.new_context(http_credentials={"username": user, "password": password})
    page: Page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(served.urls["prefect"].replace("127.0.0.1", "localhost"))
    page.get_by_placeholder(re.compile("admin|password|pass", re.IGNORECASE)).or_(page.locator("input")).first.fill(
        served.credential
    )
    page.keyboard.press("Enter")
    expect(page.get_by_text("Work Pools").first).to_be_visible()
    page.goto(served.urls["mlflow"])
    expect(page.get_by_text("Experiments").first).to_be_visible()
    page.goto(served.urls["console"])
    page.get_by_role("textbox", name="Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
    context.close()


def test_the_worker_runs_only_the_lifecycle_whatever_a_deployment_says(
    served: Served, tmp_path: Path, eventually: Callable[[Callable[[], bool], float, str], None]
) -> None:
    marker = tmp_path / "owned"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n\ndef flow():\n    pass\n")
    ours: dict[str, Any] = {"entrypoint": "cupola_flows.orchestration.flows.lifecycle"}
    script = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {marker}"}}
    asked = {
        "its deployment has job_variables": {"name": "command", **ours, "job_variables": {"command": f"touch {marker}"}},
        f"its deployment's entry point is {tmp_path}/evil.py:flow": {
            "name": "entrypoint", "entrypoint": f"{tmp_path}/evil.py:flow",
        },
        "its deployment has pull_steps": {"name": "pull", **ours, "pull_steps": [script]},
        "its deployment has path": {"name": "path", **ours, "path": str(tmp_path)},
    }  # fmt: skip
    runs = {reason: served.run_of(deployment) for reason, deployment in asked.items()}
    runs["its run has job_variables"] = served.run_of(
        {"name": "run", **ours}, job_variables={"env": {"PYTHONSTARTUP": str(tmp_path / "evil.py")}}
    )
    for reason, run in runs.items():
        eventually(lambda run=run: served.prefect(f"/flow_runs/{run}")["state"]["type"] == "CRASHED", 120, reason)  # type: ignore[misc]
        message = served.prefect(f"/flow_runs/{run}")["state"]["message"]
        assert message.endswith(f"This worker runs only cupola_flows.orchestration.flows.lifecycle, and {reason}."), (
            message
        )
        assert "\n" not in message
    assert not marker.exists()


def test_two_submitted_runs_do_not_train_at_once(served: Served, recipe: Path, eventually: Callable[..., None]) -> None:
    assert served.cupola("deploy", str(recipe)).returncode == 0
    limits = served.prefect("/v2/concurrency_limits/filter", {})
    assert [(each["name"], each["limit"]) for each in limits] == [(f"cupola-host-{socket.gethostname()}", 2)]
    sets = ["stages.pretrain.steps=60", "stages.pretrain.steps=61"]
    runs = [served.cupola.json("submit", str(recipe), "--set", each)["flow_run_id"] for each in sets]

    def states() -> list[str]:
        return [served.prefect(f"/flow_runs/{run}")["state"]["type"] for run in runs]

    eventually(lambda: states() == ["COMPLETED"] * 2, 500, "both runs completed")
    times = []
    for file in served.cupola.workspace.glob("work/*/job/metrics.jsonl"):
        lines = [json.loads(line)["time"] for line in file.read_text().splitlines()]
        times.append((min(lines), max(lines)))
    assert len(times) == 2
    (_, end), (start, _) = sorted(times)
    assert end <= start
