"""Runs share a place by the slots of a real Prefect server's global concurrency limits."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cupola_flows.servers import limits
from cupola_flows.servers.limits import PrefectLimits
from cupola_flows.servers.prefect_api import PrefectApi, PrefectServer, own_prefect
from cupola_platform.errors import StageFailedError
from cupola_platform.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
HOLD = """
import sys, time
from pathlib import Path
from pydantic import SecretStr
from cupola_flows.servers.limits import PrefectLimits
from cupola_flows.servers.prefect_api import PrefectApi
of = PrefectLimits(PrefectApi(sys.argv[1], SecretStr(sys.argv[2])), Path(sys.argv[3]))
with of.taken(sys.argv[4], int(sys.argv[5]), wait=True, waits=print):
    print("taken", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with own_prefect(Settings(home=tmp_path_factory.mktemp("prefect") / "home")) as server:
        server.wait()
        yield server


@pytest.fixture
def shared(server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrefectLimits:
    monkeypatch.setattr(limits, "ASK_EVERY", 0.2)
    return PrefectLimits(server.api, tmp_path / "leases")


class Holder(threading.Thread):
    """A job that holds slots until the test ends it."""

    def __init__(self, of: PrefectLimits, limit: str, slots: int, *, wait: bool = True) -> None:
        super().__init__(daemon=True)
        self.of, self.limit, self.slots, self.wait_for_slots = of, limit, slots, wait
        self.said: list[str] = []
        self.entered, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.of.taken(self.limit, self.slots, wait=self.wait_for_slots, waits=self.said.append):
            self.entered.set()
            self.leave.wait(300)

    def end(self) -> None:
        self.leave.set()
        self.join()


def in_use(api: PrefectApi, limit: str) -> int:
    with api.client(timeout=30) as client:
        return int(client.get(f"/v2/concurrency_limits/{limit}").json()["active_slots"])


def test_two_jobs_share_a_cluster_and_a_third_waits_says_for_what_and_goes_on(
    shared: PrefectLimits, eventually: Callable[..., None]
) -> None:
    shared.set("cupola-a", 4)
    first, second = Holder(shared, "cupola-a", 2), Holder(shared, "cupola-a", 2)
    assert first.entered.wait(60)
    assert second.entered.wait(60)
    third = Holder(shared, "cupola-a", 3)
    eventually(lambda: third.said == ["4 of 4"], 60, "the third to say what is taken")
    first.end()
    eventually(lambda: third.said == ["4 of 4", "2 of 4"], 60, "a change")
    assert not third.entered.is_set()
    second.end()
    assert third.entered.wait(60)
    assert in_use(shared.api, "cupola-a") == 3
    third.end()
    assert in_use(shared.api, "cupola-a") == 0
    assert list(shared.folder.iterdir()) == []


def test_the_slots_of_a_killed_run_are_given_back_and_the_limit_follows_the_settings(
    shared: PrefectLimits, eventually: Callable[..., None]
) -> None:
    shared.set("cupola-b", 1)
    shared.set("cupola-b", 2)
    assert shared.api.credential is not None
    secret = shared.api.credential.get_secret_value()
    command = [sys.executable, "-c", HOLD, shared.api.url, secret, str(shared.folder), "cupola-b", "2"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    assert in_use(shared.api, "cupola-b") == 2
    waiting = Holder(shared, "cupola-b", 1)
    eventually(lambda: waiting.said == ["2 of 2"], 60, "the wait")
    holder.kill()
    holder.communicate()
    assert waiting.entered.wait(60)
    assert in_use(shared.api, "cupola-b") == 1
    waiting.end()


def test_a_job_that_runs_already_does_not_wait_and_takes_its_slots_once_they_are_free(
    shared: PrefectLimits, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    monkeypatch.setattr(limits, "RENEW_EVERY", 0.3)
    shared.set("cupola-c", 2)
    first = Holder(shared, "cupola-c", 2)
    assert first.entered.wait(60)
    attached = Holder(shared, "cupola-c", 2, wait=False)
    assert attached.entered.wait(60)
    first.end()
    eventually(lambda: in_use(shared.api, "cupola-c") == 2, 60, "the attached job's slots")
    attached.end()
    assert in_use(shared.api, "cupola-c") == 0


def test_a_job_that_can_never_have_its_slots_is_refused(shared: PrefectLimits) -> None:
    shared.set("cupola-d", 1)
    with (
        pytest.raises(StageFailedError, match=r"cupola-d of Prefect has fewer slots than the 2 that this job needs"),
        shared.taken("cupola-d", 2, wait=True, waits=print),
    ):
        pass


def test_a_server_that_went_away_stops_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ASK_EVERY", 0.2)
    gone = PrefectLimits(PrefectApi("http://127.0.0.1:9/api"), tmp_path / "leases")
    started = time.monotonic()
    with gone.taken("cupola-e", 2, wait=True, waits=print):
        assert time.monotonic() - started < 10
