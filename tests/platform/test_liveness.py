"""Liveness is decided by boot id and ticks, so setting the clock changes nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from cupola_platform.liveness import lives, start_of
from cupola_platform.registry import Registry

ClockSet = Callable[[list[str], int], list[str]]


def test_a_start_is_the_boot_and_the_ticks_that_the_kernel_counts(tmp_path: Path) -> None:
    program = tmp_path / "a (b) c"  # the kernel writes the name in brackets without escaping
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        start = start_of(process.pid)
        ticks = psutil.Process(process.pid)._proc.create_time(monotonic=True)  # type: ignore[attr-defined]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert start == f"{boot}:{round(ticks * os.sysconf('SC_CLK_TCK'))}"
        assert lives(process.pid, start)
        assert not lives(process.pid, f"{boot}:{round(ticks * 100) - 1}"), "another process with its number"
        assert not lives(process.pid, f"00000000-0000-0000-0000-000000000000:{round(ticks * 100)}"), "before a reboot"
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not lives(process.pid, start), "a zombie"
    assert start_of(process.pid) is None
    assert not lives(process.pid, start)
    assert not lives(os.getpid(), "")


def test_a_clock_set_by_thirty_seconds_marks_no_run_as_lost(tmp_path: Path, with_clock_set: ClockSet) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    run = Registry(url).start_run("tiny", "pretrain")
    sweep = (
        "import time, sys; from cupola_platform.registry import Registry; import psutil;"
        "print(round(time.time() - psutil.boot_time() - time.clock_gettime(time.CLOCK_BOOTTIME)),"
        " len(Registry(sys.argv[1]).sweep_lost_runs()))"
    )
    for seconds in (30, -30):
        command = with_clock_set([sys.executable, "-c", sweep, url], seconds)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        step, lost = (int(word) for word in done.stdout.split())
        assert abs(step + seconds) <= 1, "the kernel's time of boot has moved, as when the clock is set"
        assert lost == 0
    assert Registry(url).run(run).label == "running"


def test_a_run_of_an_earlier_boot_is_lost_even_if_its_pid_is_in_use(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}")
    run = registry.start_run("tiny", "pretrain")
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("update run set process_start = replace(process_start, ':', '0:')")
    assert [row.id for row in registry.sweep_lost_runs()] == [run]
