"""The servers of `cupola up`, a deployment whose schedule fires, a run through the worker, and its cancellation."""

import base64
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cupola_flows.servers import services
from cupola_platform.settings import Settings

CUPOLA = Path(sys.executable).with_name("cupola")
Eventually = Callable[[Callable[[], bool], float, str], None]
pytestmark = pytest.mark.timeout(900)


class Api:
    """Prefect's API with the workspace's credential."""

    def __init__(self, cupola: Any, url: str) -> None:
        self.url = f"{url}/api"
        self.basic = base64.b64encode((cupola.workspace / "credential").read_bytes().strip()).decode()

    def __call__(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "authorization": f"Basic {self.basic}"}
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or "null")


@pytest.fixture
def started(cupola: Any) -> Iterator[dict[str, dict[str, Any]]]:
    up = cupola("up", "--json", timeout=400)
    assert up.returncode == 0, up.stderr
    try:
        yield {row["service"]: row for row in json.loads(up.stdout)}
    finally:
        cupola("down")


@pytest.mark.slow  # all servers with new databases, and a schedule of one minute
def test_servers_start_a_schedule_fires_and_a_submitted_run_is_cancelled_from_the_server(
    cupola: Any, recipe: Path, started: dict[str, dict[str, Any]], eventually: Eventually
) -> None:
    assert set(started) == {"prefect", "mlflow", "worker", "sweeper", "console"}
    again = {row["service"]: row["pid"] for row in cupola.json("up")}
    assert again == {name: row["pid"] for name, row in started.items()}

    recipe.write_text(recipe.read_text().replace("seed: 3", 'seed: 3\nschedule: "* * * * *"'))
    deployed = cupola("deploy", str(recipe))
    assert deployed.returncode == 0, deployed.stderr
    api = Api(cupola, started["prefect"]["url"])
    deployment = api("/deployments/name/lifecycle/short")
    assert set(deployment["parameter_openapi_schema"]["properties"]) == {"recipe", "overrides", "only", "workspace"}
    assert deployment["schedules"][0]["schedule"]["cron"] == "* * * * *"

    def fired() -> bool:
        wanted = {
            "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}, "deployment_id": {"any_": [deployment["id"]]}}
        }
        return any(run["auto_scheduled"] for run in api("/flow_runs/filter", wanted))

    eventually(fired, 400, "a completed scheduled run")
    assert [row["status"] for row in cupola.json("runs") if row["stage"] == "pretrain"][-1] == "completed"
    schedule = deployment["schedules"][0]["id"]
    api(f"/deployments/{deployment['id']}/schedules/{schedule}", {"active": False}, "PATCH")

    submitted = cupola.json("submit", str(recipe), "--set", "stages.pretrain.steps=4000")
    run = submitted["flow_run_id"]
    eventually(lambda: any(event.get("step", 0) > 25 for event in cupola.events()), 300, "the submitted run's steps")
    assert ranks(cupola) == 2
    api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    asked = time.monotonic()
    eventually(lambda: ranks(cupola) == 0, 30, "no rank after the cancellation")
    assert time.monotonic() - asked < 30
    assert cupola.events()[-1]["status"] == "preempted"
    eventually(lambda: api(f"/flow_runs/{run}")["state"]["type"] == "CANCELLED", 60, "the state CANCELLED")

    ended = cupola("down")
    assert ended.stdout.startswith("Stopped ")
    assert cupola.processes() == []
    assert cupola("down").stdout == "Nothing was running.\n"


def test_an_undeployed_recipe_and_an_absent_server_are_one_line_each(cupola: Any) -> None:
    for command in (("deploy", "smoke"), ("submit", "smoke")):
        done = cupola(*command)
        assert done.returncode == 2
        assert done.stderr == "cupola: error: No Prefect server is running. Start one with `cupola up`.\n"


def test_servers_are_found_and_stopped_after_the_clock_was_changed(
    cupola: Any, with_clock_set: Callable[[list[str], int], list[str]]
) -> None:
    settings = Settings(home=cupola.workspace)
    (cupola.workspace / "pids").mkdir(parents=True)
    service = services._keep(settings, "mlflow", ["sleep", "600"], {"CUPOLA_HOME": str(cupola.workspace)}, "", "")
    down = subprocess.run(
        with_clock_set([str(CUPOLA), "down"], 30),
        check=False, capture_output=True, text=True, env=cupola.environment(), cwd=cupola.workspace.parent,
    )  # fmt: skip
    assert (down.stdout, down.stderr) == ("Stopped mlflow.\n", "")
    assert not service.alive()
    assert cupola.processes() == []


def ranks(cupola: Any) -> int:
    def is_rank(process: psutil.Process) -> bool:
        try:
            return "RANK" in process.environ()
        except psutil.Error:
            return False

    return sum(is_rank(process) for process in cupola.processes())
