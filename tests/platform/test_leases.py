"""One command at a time runs a stage, from whichever machine and process."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cupola_platform.registry import Registry, leases
from cupola_platform.registry.tables import LeaseTable

STAGE = "f" * 64
HOLD = """
import sys, time
from cupola_platform.registry import Registry
registry = Registry(sys.argv[1])
run = registry.start_run("tiny")
stage = registry.start_run("tiny", "sft", run)
from pathlib import Path
registry.update_run(stage, work_folder=Path("/somewhere/" + "f" * 64))
assert registry.leases.take("f" * 64, "other").holder == "other"
if sys.argv[2:]:
    registry.leases.note_job("f" * 64, "other", "h100", sys.argv[2])
print(run, stage, flush=True)
time.sleep(600)
"""


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    with closing(Registry(database_url)) as opened:
        yield opened


def another_process(registry: Registry, *job: str) -> "tuple[subprocess.Popen[str], list[str]]":
    """A process that holds the stage's lease, and the ids of its runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, registry.url, *job], stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout
    return process, process.stdout.readline().split()


def test_a_living_holder_keeps_others_out_and_a_dead_one_does_not(registry: Registry) -> None:
    process, _ = another_process(registry)
    row = registry.leases.take(STAGE, "ours")
    assert (row.holder, row.pid) == ("other", process.pid)
    assert [each.fingerprint for each in registry.leases.all()] == [STAGE]
    process.kill()
    process.wait()
    assert registry.leases.take(STAGE, "ours").holder == "ours"


def test_of_many_takers_one_wins(registry: Registry) -> None:
    holders: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: holders.append(registry.leases.take(STAGE, f"taker{i}").holder))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holders) == 8
    assert len(set(holders)) == 1


def test_a_lease_of_another_machine_ends_unless_it_is_renewed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.leases.take(STAGE, "far")
    with registry._write() as session:  # as if the holder ran on another machine
        session.get_one(LeaseTable, STAGE).host = "elsewhere"
    assert registry.leases.take(STAGE, "ours").holder == "far"
    assert registry.leases.renew(STAGE, "far")
    monkeypatch.setattr(leases, "SECONDS", -1.0)
    assert registry.leases.renew(STAGE, "far")
    assert registry.leases.all() == []
    assert registry.leases.take(STAGE, "ours").holder == "ours"
    assert not registry.leases.renew(STAGE, "far")
    registry.leases.release(STAGE, "far", job_goes_on=False)
    row = registry.leases.of(STAGE)
    assert row is not None
    assert row.holder == "ours"


def test_the_job_of_a_lease_is_remembered_until_it_is_forgotten(registry: Registry) -> None:
    registry.leases.take(STAGE, "first")
    registry.leases.note_job(STAGE, "first", "h100", "17")
    registry.leases.note_job(STAGE, "not the holder", "h100", "18")
    registry.leases.release(STAGE, "first", job_goes_on=True)
    assert [row.job for row in registry.leases.all()] == ["17"]
    second = registry.leases.take(STAGE, "second")
    assert (second.holder, second.cluster, second.job) == ("second", "h100", "17")
    registry.leases.forget_job(STAGE)
    assert registry.leases.of(STAGE) is not None
    registry.leases.release(STAGE, "second", job_goes_on=False)
    assert registry.leases.of(STAGE) is None


@pytest.mark.parametrize(("job", "label"), [("", "failed (lost)"), ("17", "detached")])
def test_the_runs_of_a_killed_process_are_lost_or_detached(registry: Registry, job: str, label: str) -> None:
    process, ids = another_process(registry, *([job] if job else []))
    process.kill()
    process.wait()
    assert {row.id: row.label for row in registry.sweep_lost_runs()} == dict.fromkeys(ids, label)
    assert ("job 17 of cluster h100" in (registry.run(ids[0]).error or "")) == bool(job)
    whole = registry.start_run("tiny")
    stage = registry.start_run("tiny", "sft", whole)
    registry.take_over(Path("/somewhere") / STAGE, stage)
    if job:
        assert [registry.run(each).label for each in ids] == ["continued", "continued"]
        assert (registry.run(ids[0]).error or "").endswith(whole)
    else:
        assert [registry.run(each).label for each in ids] == [label, label]
