"""Flow runs without a living process do not stay RUNNING, on a real Prefect server with real killed processes."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cupola_flows.servers import sweeping
from cupola_flows.servers.prefect_api import own_prefect
from cupola_flows.servers.sweeping import OWN_SERVER_TAG, PROCESS_TAG, Sweeper, process_tag, worker_name
from cupola_platform.liveness import start_of
from cupola_platform.settings import Settings
from cupola_platform.workspace import Workspace

pytestmark = pytest.mark.timeout(600)
HOST = socket.gethostname()


@dataclass
class Prefect:
    """A Prefect server in which tests create flow runs like those of a worker and of `cupola run`."""

    client: httpx.Client
    flow: str
    deployment: str

    def run(
        self, workspace: Workspace, state: str, tags: list[str], *, submitted: bool = False, name: str = "run"
    ) -> str:
        """Create a flow run in this state."""
        body = {"name": name, "flow_id": self.flow, "tags": tags, "parameters": {"workspace": str(workspace.root)}}
        made = self.client.post("/flow_runs/", json=body | ({"deployment_id": self.deployment} if submitted else {}))
        made.raise_for_status()
        run: str = made.json()["id"]
        self.set(run, state)
        return run

    def set(self, run: str, state: str) -> None:
        body = {"state": {"type": state, "name": state.capitalize()}, "force": True}
        self.client.post(f"/flow_runs/{run}/set_state", json=body).raise_for_status()

    def state(self, run: str) -> tuple[str, str]:
        found = self.client.get(f"/flow_runs/{run}").json()["state"]
        return found["type"], found["name"]

    def history(self, run: str) -> list[str]:
        states = self.client.get("/flow_run_states/", params={"flow_run_id": run}).json()
        return [state["name"] for state in sorted(states, key=lambda state: str(state["timestamp"]))]


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    settings = Settings(home=tmp_path_factory.mktemp("prefect") / "home")
    with own_prefect(settings) as server, server.wait().client(timeout=60) as client:
        flow = client.post("/flows/", json={"name": "lifecycle"}).json()["id"]
        deployment = client.post("/deployments/", json={"name": "short", "flow_id": flow}).json()["id"]
        yield Prefect(client, flow, deployment)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def process() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """A function that starts a process that runs until it is killed."""
    started = []

    def start(**environment: str) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(["sleep", "600"], env={**os.environ, **environment}))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()


def tag_of(process: "subprocess.Popen[bytes]", host: str = HOST) -> str:
    return f"{PROCESS_TAG}{host}/{process.pid}/{start_of(process.pid)}"


def kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def test_a_run_and_its_stage_are_crashed_after_their_process_was_killed_and_others_are_unchanged(
    prefect: Prefect, workspace: Workspace, process: Any
) -> None:
    victim, other = process(), process()
    mark = tag_of(victim)
    whole, stage = prefect.run(workspace, "RUNNING", [mark]), prefect.run(workspace, "PENDING", [mark])
    asked_to_end = prefect.run(workspace, "CANCELLING", [mark])
    living, elsewhere = prefect.run(workspace, "RUNNING", [tag_of(other)]), tag_of(other, "another-machine")
    foreign, plain = prefect.run(workspace, "RUNNING", [elsewhere]), prefect.run(workspace, "RUNNING", [])
    sweeper = Sweeper(workspace, prefect.client)
    assert sweeper.sweep() == []
    kill(victim)
    assert (
        sorted(sweeper.sweep())
        == ["run: Its process is gone. Set to Cancelled."] + ["run: Its process is gone. Set to Crashed."] * 2
    )
    assert prefect.state(whole) == prefect.state(stage) == ("CRASHED", "Crashed")
    assert prefect.state(asked_to_end) == ("CANCELLED", "Cancelled")
    for run in (living, foreign, plain):
        assert prefect.state(run) == ("RUNNING", "Running")
    assert sweeper.sweep() == []


@pytest.mark.parametrize(
    ("status", "state"),
    [("completed", "COMPLETED"), ("failed", "FAILED"), ("cancelled", "CANCELLED"), ("running", "CRASHED")],
)
def test_a_run_that_outlived_its_server_gets_the_registrys_state(
    prefect: Prefect, workspace: Workspace, process: Any, status: Any, state: str
) -> None:
    victim = process()
    run = prefect.run(workspace, "RUNNING", [tag_of(victim)])
    known = workspace.registry.start_run("short")
    workspace.registry.update_run(known, prefect_flow_run_id=run)
    if status != "running":
        workspace.registry.finish_run(known, status)
    kill(victim)
    Sweeper(workspace, prefect.client).sweep()
    assert prefect.state(run)[0] == state


def test_a_submitted_run_is_restarted_once_and_never_while_one_of_its_processes_lives(
    prefect: Prefect, workspace: Workspace, process: Any
) -> None:
    first = process()
    run = prefect.run(workspace, "RUNNING", ["mine", tag_of(first)], submitted=True)
    rank = process(PREFECT__FLOW_RUN_ID=run)  # a rank that the first process started
    kill(first)
    sweeper = Sweeper(workspace, prefect.client)
    assert sweeper.sweep() == []
    kill(rank)
    sweepers = [threading.Thread(target=Sweeper(workspace, prefect.client).sweep) for _ in range(4)]
    for each in sweepers:
        each.start()
    for each in sweepers:
        each.join()
    assert prefect.state(run) == ("SCHEDULED", "AwaitingRetry")
    assert prefect.history(run) == ["Pending", "Running", "Crashed", "AwaitingRetry"]
    assert sorted(prefect.client.get(f"/flow_runs/{run}").json()["tags"]) == ["cupola.restarted", "mine"]

    second = process(PREFECT__FLOW_RUN_ID=run)  # started by the worker, without a tag yet
    prefect.set(run, "RUNNING")
    assert sweeper.sweep() == []
    prefect.client.patch(f"/flow_runs/{run}", json={"tags": ["cupola.restarted", "mine", tag_of(second)]})
    kill(second)
    assert sweeper.sweep() == ["run: Its process is gone. Set to Crashed."]
    assert sweeper.sweep() == []
    assert prefect.state(run) == ("CRASHED", "Crashed")


def test_the_run_of_a_killed_worker_is_restarted_but_not_that_of_a_worker_elsewhere(
    prefect: Prefect, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = prefect.run(workspace, "PENDING", [], submitted=True)
    elsewhere = prefect.run(workspace, "PENDING", [], submitted=True)
    prefect.client.patch(f"/flow_runs/{here}/labels", json={"prefect.worker.name": worker_name(1)}).raise_for_status()
    prefect.client.patch(f"/flow_runs/{elsewhere}/labels", json={"prefect.worker.name": "another-machine-1"})
    sweeper = Sweeper(workspace, prefect.client)
    assert sweeper.sweep() == []
    assert sweeper.sweep() == [], "the worker may be about to start it"
    monkeypatch.setattr(sweeping, "PATIENCE", 0.0)
    assert [line.partition(":")[0] for line in sweeper.sweep()] == ["run", "run"]
    assert prefect.history(here)[-3:] == ["Pending", "Crashed", "AwaitingRetry"]
    assert prefect.state(elsewhere) == ("PENDING", "Pending")


def test_a_run_that_down_stopped_is_cancelled_in_prefect_and_the_registry_and_not_restarted(
    prefect: Prefect, workspace: Workspace, process: Any
) -> None:
    carrier = process()
    run = prefect.run(workspace, "RUNNING", [tag_of(carrier)], submitted=True)
    its_own_server = prefect.run(workspace, "RUNNING", [process_tag(), OWN_SERVER_TAG])
    started = subprocess.run(
        [sys.executable, "-c", "import sys; from cupola_platform.registry import Registry; print(Registry(sys.argv[1]).start_run('short'))",
         workspace.registry.url],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    workspace.registry.update_run(started, prefect_flow_run_id=run)
    sweeper = Sweeper(workspace, prefect.client)
    living = sweeper.living()
    assert [each["id"] for each in living] == [run]
    kill(carrier)
    sweeper.cancel(living)
    assert prefect.state(run) == ("CANCELLED", "Cancelled")
    assert workspace.registry.run(started).label == "cancelled"
    assert sweeper.sweep() == []
    assert prefect.state(its_own_server) == ("RUNNING", "Running")
