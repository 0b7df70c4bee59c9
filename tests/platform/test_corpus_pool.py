"""The pool of worker processes."""

import os
import signal
import subprocess
import sys
import time
from math import factorial

import psutil
import pytest

from cupola_platform.corpus.pool import WorkerPool


def test_results_come_in_order_and_errors_are_the_functions_own() -> None:
    with WorkerPool(2) as pool:
        assert list(pool.map(factorial, range(6))) == [1, 1, 2, 6, 24, 120]
        with pytest.raises(ValueError, match="not defined for negative"):
            list(pool.map(factorial, [3, -1, 4]))
        assert list(pool.map(factorial, [4])) == [24]


def test_a_worker_that_dies_is_reported() -> None:
    with WorkerPool(1) as pool, pytest.raises(RuntimeError, match=r"died \(exit status 3\).*Try fewer workers"):
        list(pool.map(os._exit, [3]))


def test_workers_end_with_the_pool() -> None:
    others = set(psutil.Process().children())  # servers that tests share
    with WorkerPool(2) as pool:
        assert list(pool.map(factorial, [3])) == [6]
        pids = {process.pid for process in set(psutil.Process().children()) - others}
        assert len(pids) >= 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_end_when_their_parent_is_killed() -> None:
    parent_code = """
from time import sleep
from cupola_platform.corpus.pool import WorkerPool
with WorkerPool(2) as pool:
    list(pool.map(sleep, [0, 0]))
    print(*(process.pid for process in pool._processes), flush=True)
    sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
