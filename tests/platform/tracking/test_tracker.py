import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from cupola_platform.tracking.spool import Spool
from cupola_platform.tracking.tracker import Flushed, Sender, Tracker, flush_spool
from cupola_platform.workspace import Workspace

STEPS = 4000


def write_metrics(path: Path, first: int, last: int) -> None:
    """Steps of a job, two metrics each, a millisecond apart."""
    with path.open("a") as out:
        for step in range(first, last + 1):
            row = {"event": "step", "time": 1_700_000_000 + step / 1000, "step": step, "loss": 1 / step, "lr": 0.1}
            out.write(json.dumps(row) + "\n")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take many seconds to create."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracked(ws: Workspace, empty_database: Path) -> Workspace:
    """A workspace whose MLflow database is ready."""
    shutil.copy(empty_database, ws.root / "mlflow.db")
    return ws


class Server:
    """A real MLflow server that can be killed and restarted on its port."""

    def __init__(self, database: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{database}"),
        ]
        self._folder = database.parent
        self._process: psutil.Popen | None = None

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = psutil.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # saves eight unused processes
            )  # fmt: skip
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).read()
                return
            except OSError:
                assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        if self._process is None:
            return
        everyone = [self._process, *self._process.children(recursive=True)]
        for process in everyone:
            process.kill()
        psutil.wait_procs(everyone)
        self._process = None


@pytest.fixture
def server(tmp_path: Path, empty_database: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(Path(shutil.copy(empty_database, tmp_path / "server/mlflow.db")), free_port())
    yield server
    server.kill()


def history(client: Any, run: str | None, key: str) -> list[tuple[int, int, float]]:
    return sorted((point.step, point.timestamp, point.value) for point in client.get_metric_history(run, key))


def expected(steps: range) -> list[tuple[int, int, float]]:
    return [(step, int((1_700_000_000 + step / 1000) * 1000), 1 / step) for step in steps]


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow  # a minute
def test_every_point_arrives_once_although_the_server_starts_late_and_is_killed(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPOLA_MLFLOW_TRACKING_URI", server.uri)
    ws = Workspace.open(tmp_path / "workspace")
    metrics = tmp_path / "metrics.jsonl"
    write_metrics(metrics, 1, STEPS)
    run = ws.registry.start_run("tiny", "pretrain")
    state = ws.root / "spool" / run / "state.json"
    started = time.monotonic()
    said: list[str] = []
    tracker = Tracker.open(ws, said.append)
    tracker.open_run(run, "pretrain")
    tracker.follow(run, metrics)
    assert time.monotonic() - started < 1, "no server: nothing waits"
    until(lambda: said)  # it is away: said once, however often it is retried

    server.start()  # after the metrics were written
    until(lambda: state.exists() and json.loads(state.read_text())["cursors"])
    server.kill()  # while it is receiving
    sent = json.loads(state.read_text())["cursors"][str(metrics)]["offset"]
    assert 0 < sent < metrics.stat().st_size
    write_metrics(metrics, STEPS + 1, STEPS + 100)  # training continues
    tracker.end_run(run, "completed", metrics={"final": 0.5}, tags={"cupola.artifact": "abc"})
    left = tracker.close(timeout=60)
    assert (left.sent, left.left) == (0, 1)
    with tracker:
        pass
    assert [line.partition(" (")[0] for line in said] == ["MLflow does not respond", "MLflow did not get everything"]
    unsent = metrics.read_bytes()[sent:].count(b"\n")
    assert 100 < unsent < STEPS + 100
    assert said[1].endswith(
        f": 1 runs with {unsent:,} lines of metrics wait in {ws.root / 'spool'}. "
        "The same command, `cupola up` or `cupola tracking flush` sends them."
    )
    metrics.unlink()  # the job's folder may be removed

    server.start()
    assert flush_spool(ws) == Flushed(sent=1, left=0, reason=None)
    assert flush_spool(ws) == Flushed(sent=0, left=0, reason=None)
    client = MlflowClient(server.uri)
    identity = ws.registry.run(run).mlflow_run_id
    assert history(client, identity, "loss") == expected(range(1, STEPS + 101))
    assert len(history(client, identity, "lr")) == STEPS + 100
    found = client.get_run(identity)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["final"] == 0.5
    assert found.data.tags["cupola.artifact"] == "abc"
    assert len(client.search_runs([found.info.experiment_id])) == 1
    assert list((ws.root / "spool").iterdir()) == []


def test_stages_are_nested_in_their_recipe_with_parameters_and_states(tracked: Workspace, tmp_path: Path) -> None:
    whole = tracked.registry.start_run("tiny")
    stage = tracked.registry.start_run("tiny", "pretrain", parent=whole)
    with Tracker.open(tracked) as tracker:
        tracker.open_run(whole, "tiny", tags={"recipe": "tiny"})
        tracker.open_run(stage, "pretrain", parent=whole, params={"model": {"hidden_size": 64}, "steps": 2})
        tracker.end_run(stage, "cancelled")
        tracker.end_run(whole, "failed")
        assert tracker.close(60) == Flushed(sent=2, left=0, reason=None)
    client = MlflowClient(tracked.settings.tracking_uri)
    parent = client.get_run(tracked.registry.run(whole).mlflow_run_id)
    child = client.get_run(tracked.registry.run(stage).mlflow_run_id)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params == {"model.hidden_size": "64", "steps": "2"}
    assert (child.info.status, parent.info.status) == ("KILLED", "FAILED")
    assert (child.info.run_name, parent.info.run_name) == ("pretrain", "tiny")


def test_metrics_appear_while_the_job_runs_and_a_stage_may_have_several_jobs(
    tracked: Workspace, tmp_path: Path
) -> None:
    run = tracked.registry.start_run("tiny", "upcycle")
    one, two, three = (tmp_path / f"{name}.jsonl" for name in ("one", "two", "three"))
    client = MlflowClient(tracked.settings.tracking_uri)
    with Tracker.open(tracked) as tracker:
        tracker.open_run(run, "upcycle")
        tracker.follow(run, one)
        write_metrics(one, 1, 3)
        until(lambda: tracked.registry.run(run).mlflow_run_id)
        identity = tracked.registry.run(run).mlflow_run_id
        until(lambda: history(client, identity, "loss") == expected(range(1, 4)))
        write_metrics(one, 4, 5)
        write_metrics(two, 6, 7)
        tracker.follow(run, two)
        until(lambda: history(client, identity, "loss") == expected(range(1, 8)))
        write_metrics(three, 1, 3)
        tracker.follow(run, three, "round1/")
        until(lambda: history(client, identity, "round1/loss") == expected(range(1, 4)))
        assert history(client, identity, "loss") == expected(range(1, 8))
        tracker.end_run(run, "completed")


def test_a_run_created_just_before_a_crash_is_not_created_twice(tracked: Workspace, tmp_path: Path) -> None:
    spool = Spool(tracked.folder("spool"))
    metrics = tmp_path / "metrics.jsonl"
    write_metrics(metrics, 1, 10)
    spool.open_run("r", "pretrain", None, {"a": 1}, {})
    spool.follow("r", metrics)
    assert Sender(tracked.settings.tracking_uri, spool).flush().reason is None
    (spool.folder / "r/state.json").unlink()  # as if killed between the server's response and recording it
    spool.end_run("r", "completed", {}, {})
    assert Sender(tracked.settings.tracking_uri, spool).flush() == Flushed(1, 0, None)
    client = MlflowClient(tracked.settings.tracking_uri)
    (found,) = client.search_runs([client.get_experiment_by_name("cupola").experiment_id])
    assert history(client, found.info.run_id, "loss") == expected(range(1, 11))


def leave_a_lost_run(ws: Workspace) -> str:
    """A run whose process ended without reporting a result, and its data in the spool."""
    script = (
        "from pathlib import Path; from cupola_platform.workspace import Workspace\n"
        "from cupola_platform.tracking.spool import Spool\n"
        f"ws = Workspace.open(Path({str(ws.root)!r})); run = ws.registry.start_run('tiny', 'sft')\n"
        "Spool(ws.folder('spool')).open_run(run, 'sft', None, {}, {}); print(run)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_spool_of_a_lost_run_is_sent_and_closed_as_failed(tracked: Workspace) -> None:
    lost = leave_a_lost_run(tracked)
    assert flush_spool(tracked) == Flushed(1, 0, None)
    identity = tracked.registry.run(lost).mlflow_run_id
    assert MlflowClient(tracked.settings.tracking_uri).get_run(identity).info.status == "FAILED"


def test_data_of_a_running_process_is_left_to_it(tracked: Workspace) -> None:
    run = tracked.registry.start_run("tiny", "sft")
    Spool(tracked.folder("spool")).open_run(run, "sft", None, {}, {})
    assert flush_spool(tracked) == Flushed(0, 0, None)
    tracked.registry.finish_run(run, "failed")
    assert flush_spool(tracked) == Flushed(0, 0, None), "it is about to say how it ended"


def test_mlflows_absence_and_return_are_each_reported_once(tracked: Workspace, free_port: Callable[[], int]) -> None:
    away = f"http://someone:secret@127.0.0.1:{free_port()}"
    sender = Sender(away, Spool(tracked.folder("spool")))
    said: list[str] = []
    with Tracker(sender, interval=0.02, say=said.append) as tracker:
        tracker.open_run("r", "sft")
        until(lambda: said)
        time.sleep(1.0)
        assert len(said) == 1
        assert said[0].startswith("MLflow does not respond (")
        assert said[0].endswith("). The run continues; its metrics are kept and sent later.")
        assert "secret" not in said[0]
        sender.uri = tracked.settings.tracking_uri
        until(lambda: len(said) == 2)
        assert said[1] == "MLflow responds again."
        tracker.end_run("r", "completed")
    assert len(said) == 2
    assert not sender.spool.holds("r")


def test_an_absent_server_is_not_tried_for_every_run(tracked: Workspace, free_port: Callable[[], int]) -> None:
    spool = Spool(tracked.folder("spool"))
    for number in range(50):
        spool.open_run(f"r{number}", "sft", None, {}, {})
        spool.end_run(f"r{number}", "completed", {}, {})
    began = time.monotonic()
    flushed = Sender(f"http://someone:secret@127.0.0.1:{free_port()}", spool).flush()
    assert time.monotonic() - began < 30
    assert (flushed.sent, flushed.left) == (0, 50)
    assert "secret" not in str(flushed.reason)


def test_the_next_run_sends_data_left_by_an_earlier_one(tracked: Workspace) -> None:
    lost = leave_a_lost_run(tracked)
    run = tracked.registry.start_run("tiny")
    with Tracker.open(tracked) as tracker:
        tracker.open_run(run, "tiny")
        until(lambda: tracked.registry.run(lost).mlflow_run_id)
        tracker.end_run(run, "completed")
        assert tracker.close(60) == Flushed(1, 0, None)
    assert list((tracked.root / "spool").iterdir()) == []


def test_a_run_that_another_process_is_sending_is_left_to_it(tracked: Workspace) -> None:
    spool = Spool(tracked.folder("spool"))
    spool.open_run("r", "sft", None, {}, {})
    spool.end_run("r", "completed", {}, {})
    sender = Sender(tracked.settings.tracking_uri, spool)
    with spool.locked("r") as mine:
        assert mine
        assert sender.flush() == Flushed(0, 1, None)
    assert sender.flush() == Flushed(1, 0, None)
