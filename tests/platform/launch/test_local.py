import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cupola_platform.errors import ConfigError
from cupola_platform.launch.local import LocalLauncher

RANK = """
import os, signal, sys, time
from pathlib import Path

job = Path(sys.argv[1])
def save(*_):
    (job.parent / f"saved-{os.environ['RANK']}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if job.read_text() == "stubborn" else save)
note = job.parent / f"rank-{os.environ['RANK']}"
note.with_suffix(".partial").write_text(f"{os.getpid()} {os.environ['WORLD_SIZE']} {os.environ['OMP_NUM_THREADS']}")
note.with_suffix(".partial").rename(note)
print("hello from", os.environ["GREETING"], flush=True)
time.sleep(0 if job.read_text() == "short" else 600)
sys.exit(3 if job.read_text() == "fail" else 0)
"""


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalLauncher]:
    (tmp_path / "rank_of_test.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("GREETING", "outside")
    others = set(psutil.Process().children(recursive=True))  # servers shared by tests
    yield LocalLauncher(max_processes=2, module="rank_of_test")
    for process in set(psutil.Process().children(recursive=True)) - others:
        process.kill()


def job_file(folder: Path, text: str) -> Path:
    (folder / "job.json").write_text(text)
    return folder / "job.json"


def ranks(folder: Path, count: int = 2) -> list[int]:
    """PIDs of the ranks once they run."""
    deadline = time.monotonic() + 90
    while len(found := sorted(folder.glob("rank-?"))) < count:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    return [int(path.read_text().split()[0]) for path in found]


def runs(pid: int) -> bool:
    """Whether a process is running, and not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: list[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


SHARE = str(max(1, len(os.sched_getaffinity(0)) // 2))


@pytest.mark.parametrize(("given", "threads"), [("", SHARE), ("3", "3")])
def test_a_job_runs_to_its_end_with_the_requested_threads_or_its_share_of_the_cores(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    (temporary := tmp_path / "temporary").mkdir()
    env = {"GREETING": "inside", "TMPDIR": str(temporary)}
    job = launcher.start(job_file(tmp_path, "short"), processes=2, log=tmp_path / "logs/log", env=env)
    assert job.wait() == 0
    assert job.poll() == 0
    assert not list(temporary.iterdir())
    assert (tmp_path / "logs/log").read_text().count("hello from inside") == 2
    assert (tmp_path / "rank-1").read_text().split()[1:] == ["2", threads]


def test_stopping_lets_the_ranks_save(launcher: LocalLauncher, tmp_path: Path) -> None:
    with launcher.start(job_file(tmp_path, "polite"), processes=2, log=tmp_path / "log") as job:
        pids = ranks(tmp_path)
        assert job.wait(0.1) is None
        code = job.stop()
    assert code != 0
    assert gone([job.pid, *pids], within=1)
    assert sorted(path.name for path in tmp_path.glob("saved-?")) == ["saved-0", "saved-1"]


def test_a_wait_interrupted_by_a_signal_leaves_the_job_running(launcher: LocalLauncher, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        with launcher.start(job_file(tmp_path, "polite"), processes=2, log=tmp_path / "log") as job:
            pids = ranks(tmp_path)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                job.wait(30)
            assert job.poll() is None
            job.stop()
            assert gone([job.pid, *pids], within=0.1)
    finally:
        signal.signal(signal.SIGALRM, handler)


def test_a_rank_that_ignores_the_signal_is_killed(launcher: LocalLauncher, tmp_path: Path) -> None:
    job = launcher.start(job_file(tmp_path, "stubborn"), processes=2, log=tmp_path / "log")
    pids = ranks(tmp_path)
    started = time.monotonic()
    job.stop(grace_seconds=2)
    assert time.monotonic() - started < 15
    assert gone([job.pid, *pids], within=1)


def test_a_failed_rank_fails_the_job_and_ends_the_others(launcher: LocalLauncher, tmp_path: Path) -> None:
    job = launcher.start(job_file(tmp_path, "polite"), processes=2, log=tmp_path / "log")
    pids = ranks(tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    assert job.wait(60) == 1
    assert gone(pids, within=1)


def test_when_torchrun_is_killed_its_ranks_save_and_end(launcher: LocalLauncher, tmp_path: Path) -> None:
    job = launcher.start(job_file(tmp_path, "polite"), processes=2, log=tmp_path / "log")
    pids = ranks(tmp_path)
    [torchrun] = psutil.Process(job.pid).children()
    torchrun.kill()
    assert job.wait(60) == -signal.SIGKILL
    assert gone(pids, within=1)
    assert len(list(tmp_path.glob("saved-?"))) == 2


def test_when_the_launching_process_is_killed_no_rank_survives(launcher: LocalLauncher, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from cupola_platform.launch.local import LocalLauncher\n"
        f"job = LocalLauncher(2, 'rank_of_test').start(Path('{job_file(tmp_path, 'polite')}'), processes=2, "
        "log=Path('log'))\njob.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    pids = ranks(tmp_path)
    agent = [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    assert gone([*pids, *agent], within=30)
    assert len(list(tmp_path.glob("saved-?"))) == 2


def test_a_job_outlives_the_thread_that_started_it(launcher: LocalLauncher, tmp_path: Path) -> None:
    jobs = []
    file = job_file(tmp_path, "polite")
    thread = threading.Thread(target=lambda: jobs.append(launcher.start(file, processes=1, log=tmp_path / "log")))
    thread.start()
    thread.join()
    ranks(tmp_path, count=1)
    assert jobs[0].wait(1) is None
    jobs[0].stop()


def test_more_ranks_than_the_machine_may_run_are_refused(launcher: LocalLauncher, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"needs 3 processes, but this machine runs at most 2 .it has .*--run-on NAME"
    ):
        launcher.start(tmp_path / "job.json", processes=3, log=tmp_path / "log")
    assert LocalLauncher().max_processes == len(os.sched_getaffinity(0))


def test_an_unwritable_log_is_refused(launcher: LocalLauncher, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"Cannot start a job with the log .*file/log"):
        launcher.start(job_file(tmp_path, "short"), processes=1, log=tmp_path / "file/log")
