"""The tether between a process and its command, with real processes that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cupola_platform.launch import tether

COUNTS = """
import os, signal, sys, time
from pathlib import Path
came = []
signal.signal(signal.SIGTERM, lambda *_: came.append(1))
Path(sys.argv[1]).with_suffix(".pid").write_text(str(os.getpid()))
while not came:
    time.sleep(0.001)
time.sleep(1)  # for signals after the first
Path(sys.argv[1]).with_suffix(".partial").write_text(str(len(came)))
Path(sys.argv[1]).with_suffix(".partial").rename(sys.argv[1])
"""
STUBBORN = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1]).with_suffix(".pid").write_text(str(os.getpid()))
time.sleep(600)
"""
PARENT = """
import json, os, subprocess, sys, threading, time
before, after = json.loads(sys.argv[1])
def run():
    subprocess.run([sys.executable, *before, str(os.getpid()), sys.executable, *after])
for _ in range(20):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
threading.Thread(target=run, daemon=True).start()
time.sleep(600)
"""


def start(note: Path, command: str, *between: str) -> "subprocess.Popen[bytes]":
    """A multi-threaded process whose command is running; its PID is in `note`.pid."""
    told = json.dumps([between, ["-c", command, str(note)]])
    parent = subprocess.Popen([sys.executable, "-c", PARENT, told])
    until = time.monotonic() + 60
    while not note.with_suffix(".pid").exists() or not note.with_suffix(".pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    return parent


def ends(pid: int, seconds: float) -> bool:
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_killed_multithreaded_parent_ends_its_command_with_one_signal(tmp_path: Path) -> None:
    notes = [tmp_path / f"count-{n}" for n in range(5)]
    for parent in [start(note, COUNTS, tether.__file__) for note in notes]:
        parent.kill()
        parent.wait()
    assert all(ends(int(note.with_suffix(".pid").read_text()), 30) for note in notes)
    assert [note.read_text() for note in notes] == ["1"] * 5


def test_a_command_that_outlives_the_signal_is_killed_if_the_parent_is_gone(tmp_path: Path) -> None:
    short = (
        f"import sys; sys.path.insert(0, {str(Path(tether.__file__).parent)!r}); import tether; "
        "tether.GRACE_SECONDS = 1.0; "
    )
    run = "tether._end_like(tether.main(int(sys.argv[1]), sys.argv[2:]))"
    note = tmp_path / "note"
    parent = start(note, STUBBORN, "-c", short + run)
    pid = int(note.with_suffix(".pid").read_text())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    assert ends(pid, 30)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("raise SystemExit(0)", 0),
        ("raise SystemExit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
    ],
)
def test_the_exit_status_is_the_commands(command: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, tether.__file__, str(os.getpid()), sys.executable, "-c", command], check=False
    )
    assert done.returncode == status


def test_a_signal_to_it_is_passed_on(tmp_path: Path) -> None:
    note = tmp_path / "count"
    parent = start(note, COUNTS, tether.__file__)
    pid = int(note.with_suffix(".pid").read_text())
    between = psutil.Process(pid).parent()
    assert between
    assert between.pid != parent.pid
    between.terminate()
    assert ends(pid, 30)
    assert note.read_text() == "1"
    parent.kill()
    parent.wait()
