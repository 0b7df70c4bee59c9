"""Jobs on a real Slurm cluster of four nodes on this machine."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cupola_platform.clusters import SlurmCluster
from cupola_platform.errors import ConfigError, ServiceError
from cupola_platform.launch import handle
from cupola_platform.launch.slurm.launcher import SlurmLauncher

CLUSTER = SlurmCluster(launcher="slurm", nodes=4, ranks_per_node=1, interface="lo")
RANK = """
import json, os, signal, sys, time
from pathlib import Path
job = json.loads(Path(sys.argv[1]).read_text())
folder = Path(job["output"])
signal.signal(signal.SIGTERM, lambda *_: (folder / f"saved-{os.environ['RANK']}").touch() or sys.exit(143))
(folder / f"rank-{os.environ['RANK']}").write_text(os.environ["WORLD_SIZE"] + " " + os.environ["SLURM_NODEID"])
until = time.monotonic() + job["seconds"]
while time.monotonic() < until:
    time.sleep(0.1)
sys.exit(job.get("status", 0))
"""


@pytest.fixture
def launcher(tmp_path: Path, on_slurm: Any, monkeypatch: pytest.MonkeyPatch) -> SlurmLauncher:
    (tmp_path / "rank_of_test.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return SlurmLauncher("test", CLUSTER, module="rank_of_test")


def job(folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "job.json").write_text(json.dumps({"output": str(folder), "seconds": 0.5, **settings}))
    return folder / "job.json"


def test_the_ranks_of_a_job_run_one_on_each_node(launcher: SlurmLauncher, tmp_path: Path) -> None:
    file = job(tmp_path / "a job with spaces and $(touch x)")
    running = launcher.start(file, processes=2, log=tmp_path / "log")
    assert running.wait(120) == 0, (tmp_path / "log").read_text()
    assert {(file.parent / f"rank-{rank}").read_text() for rank in (0, 1)} == {"2 0", "2 1"}
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_failed_rank_fails_the_job(launcher: SlurmLauncher, tmp_path: Path) -> None:
    running = launcher.start(job(tmp_path / "job", status=3), processes=2, log=tmp_path / "log")
    assert running.wait(120) == 1


@pytest.mark.slow
def test_stopping_lets_the_ranks_save(launcher: SlurmLauncher, tmp_path: Path) -> None:
    file = job(tmp_path / "job", seconds=300)
    running = launcher.start(file, processes=2, log=tmp_path / "log")
    wait_for(lambda: len(list(file.parent.glob("rank-*"))) == 2)
    assert running.stop(60) != 0
    assert {path.name for path in file.parent.glob("saved-*")} == {"saved-0", "saved-1"}


@pytest.mark.slow
def test_another_process_attaches_to_a_running_job_and_to_no_ended_one(launcher: SlurmLauncher, tmp_path: Path) -> None:
    file = job(tmp_path / "job", seconds=300)
    first = launcher.start(file, processes=1, log=tmp_path / "log")
    again = SlurmLauncher("test", CLUSTER).attach(file)
    known = handle.read(file.parent)
    assert again is not None
    assert known is not None
    assert again.number == first.number == known.id
    again.stop(60)
    assert SlurmLauncher("test", CLUSTER).attach(file) is None


@pytest.mark.parametrize(
    ("changes", "processes", "says"),
    [
        ({}, 5, r"needs 5 ranks; cluster test runs at most 4 x 1 = 4"),
        (
            {"partition": "nowhere"},
            1,
            r"Slurm has no partition 'nowhere'\. Known: main, urgent\. Correct clusters\.test\.part",
        ),
        (
            {"sbatch": {"constraint": "new"}},
            1,
            r"sbatch refused: .*Invalid feature.*\. Correct clusters\.test in cupola\.t",
        ),
        ({"sbatch": {"qoss": "x"}}, 1, r"sbatch refused: sbatch: unrecognized option '--qoss=x'\. Correct"),
        ({"gpus_per_node": 1, "ranks_per_node": None}, 1, r"sbatch refused: Invalid generic resource \(gres\)"),
        ({"time_limit": "99"}, 4, None),
    ],
)
def test_what_slurm_or_the_cluster_refuses_is_one_line(
    changes: dict[str, Any], processes: int, says: str | None, on_slurm: Any, tmp_path: Path
) -> None:
    launcher = SlurmLauncher("test", CLUSTER.but(**changes))
    if says is None:
        launcher.check(processes)
        return
    with pytest.raises(ConfigError, match=says) as caught:
        launcher.start(job(tmp_path / "job"), processes=processes, log=tmp_path / "log")
    assert "\n" not in str(caught.value)
    assert handle.read(tmp_path / "job") is None


SBATCH = {
    "answers nonsense": ("echo hello world", "sbatch answered 'hello world', which is no job's number"),
    "answers nothing": ("true", "sbatch answered '', which is no job's number"),
    "fails after it submitted": (
        '$SBATCH "$@"; echo "error: a late one" >&2; exit 1',
        "sbatch refused: a late one. Corr",
    ),
    "loses the answer": ('$SBATCH "$@" >&2; echo "error: Socket timed out" >&2; exit 1', "sbatch does not answer: "),
}


@pytest.mark.parametrize("what", SBATCH)
def test_a_submission_that_fails_leaves_no_job(
    what: str, launcher: SlurmLauncher, slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, says = SBATCH[what]
    fake_sbatch(tmp_path, monkeypatch, script)
    file = job(tmp_path / "job", seconds=300)
    with pytest.raises((ConfigError, ServiceError), match=says) as caught:
        launcher.start(file, processes=1, log=tmp_path / "log")
    assert "\n" not in str(caught.value)
    assert [path.name for path in file.parent.iterdir()] == ["job.json"]
    wait_for(lambda: slurm.ask("squeue", "--noheader") == "", 30)


def test_a_job_of_a_command_that_was_killed_while_it_submitted_is_found_again(
    launcher: SlurmLauncher, slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job(tmp_path / "job", seconds=300)
    fake_sbatch(tmp_path, monkeypatch, '$SBATCH "$@" >"$0.number"; kill -9 $PPID')
    held = SlurmLauncher("test", CLUSTER.but(sbatch={"begin": "now+1hour"}))
    child = multiprocessing.get_context("fork").Process(
        target=held.start, args=(file,), kwargs={"processes": 1, "log": tmp_path / "log"}
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    number = (tmp_path / "bin" / "sbatch.number").read_text().strip()
    again = launcher.attach(file)
    assert again is not None
    assert again.number == number
    again.stop(0)
    assert launcher.attach(file) is None


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_a_log_that_slurm_would_write_elsewhere_is_refused(name: str, launcher: SlurmLauncher, tmp_path: Path) -> None:
    file = job(tmp_path / "job")
    with pytest.raises(ConfigError, match="without quotes, backslashes and line ends") as caught:
        launcher.start(file, processes=1, log=tmp_path / name / "log")
    assert "\n" not in str(caught.value)
    assert [path.name for path in file.parent.iterdir()] == ["job.json"]


def fake_sbatch(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put another sbatch on PATH; `$SBATCH` is the real one."""
    real = shutil.which("sbatch")
    (folder / "bin").mkdir()
    (folder / "bin" / "sbatch").write_text(f"#!/bin/bash\nSBATCH={real}\n{script}\n")
    (folder / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="sbatch is not on PATH"):
        SlurmLauncher("test", CLUSTER).check(1)


def wait_for(true: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)
