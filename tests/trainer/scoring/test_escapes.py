"""Escape attempts from the sandbox, scored by root, by a regular user, and by one without namespaces."""

import contextlib
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HEAD = """
import ctypes, fcntl, os, resource, signal, socket, struct, sys, termios, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    if libc.syscall(*args) < 0:
        raise OSError(ctypes.get_errno(), "refused")
"""
F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_OFD_SETLK, O_ASYNC = 10, 15, 1024, 37, 0o20000
FS_IOC_SETFLAGS, IMMUTABLE = 0x40086602, 0x10
LOCK = 'struct.pack("hhqqi4x", 1, 0, 0, 0, 0)'
CALL = {"process_vm_readv": 310, "ptrace": 101, "clone": 56, "vfork": 58, "pidfd_open": 434, "memfd_create": 319,
        "mount": 165, "unshare": 272, "chroot": 161, "bpf": 321, "io_uring_setup": 425, "keyctl": 250, "shmget": 29,
        "openat2": 437, "sched_setaffinity": 203, "setpriority": 141, "mlock": 149, "timer_create": 222}  # fmt: skip
"""System call numbers on x86-64."""


@pytest.fixture(scope="module")
def victim(scorer: Any) -> Iterator[int]:
    """A sleeping process of the scorer's user."""
    other = {} if os.geteuid() == scorer.user else {"user": scorer.user}
    process = subprocess.Popen(["sleep", "600"], **other)  # type: ignore[call-overload]
    yield process.pid
    assert process.poll() is None, "something killed it"
    process.kill()
    process.wait()


@pytest.fixture
def file(scorer: Any) -> Iterator[Path]:
    """A file that the scorer's user can write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    path = folder / "kept"
    path.write_text("kept")
    os.chown(path, scorer.user, -1)
    yield path
    assert [(left.name, left.read_text()) for left in folder.iterdir()] == [("kept", "kept")]
    shutil.rmtree(folder)


def outcomes(scorer: Any, *attempts: str) -> list[Any]:
    """The errno of each attempt, or "done" if it succeeded."""
    answer = f"{HEAD}ends = []\n"
    for attempt in attempts:
        answer += f"try:\n    {attempt}\n    ends.append('done')\n"
        answer += "except OSError as error:\n    ends.append(error.errno)\n"
    ends: list[Any] = [1, 2, 13, "done"]
    found: list[Any] = [None] * len(attempts)
    for end in ends:  # a program cannot report what it saw, so each possible outcome is a test
        if scorer.score(answer, f"assert ends == {[end] * len(attempts)}"):
            return [end] * len(attempts)
    for place in range(len(attempts)):
        tests = [f"assert ends[{place}] == {end!r}" for power, end in enumerate(ends) for _ in range(2**power)]
        held = round(scorer.score(answer, tests) * len(tests))
        found[place] = ends[held.bit_length() - 1] if held else None
    return found


def refused(scorer: Any, *attempts: str) -> bool:
    """Whether every attempt fails with EPERM."""
    ends = outcomes(scorer, *attempts)
    assert dict(zip(attempts, ends, strict=True)) == dict.fromkeys(attempts, 1)
    return True


def test_no_file_can_signal_another_process(scorer: Any, victim: int) -> None:
    assert refused(
        scorer,
        f"fcntl.fcntl(3, fcntl.F_SETOWN, {victim})",
        f"fcntl.fcntl(3, {F_SETOWN_EX}, struct.pack('ii', 1, {victim}))",
        f"fcntl.fcntl(3, {F_SETSIG}, signal.SIGKILL)",
        f"fcntl.fcntl(3, fcntl.F_SETFL, {O_ASYNC})",
    )


def test_no_process_can_be_signaled_or_slowed(scorer: Any, victim: int) -> None:
    assert refused(
        scorer, f"os.kill({victim}, 9)", "os.kill(os.getppid(), 9)", "os.kill(-1, 9)", "os.killpg(0, 9)",
        f"call({CALL['pidfd_open']}, {victim}, 0)", "signal.setitimer(signal.ITIMER_REAL, 1)",
        f"resource.prlimit({victim}, resource.RLIMIT_CPU, (0, 0))", f"os.sched_setaffinity({victim}, [0])",
        f"os.setpriority(os.PRIO_PROCESS, {victim}, 19)",
    )  # fmt: skip


@pytest.fixture(scope="module")
def terminal(scorer: Any) -> Iterator[tuple[int, str]]:
    """Another terminal of the scorer's user: a descriptor to read its input from, and its name."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.chown(name, scorer.user, -1)
    yield master, name
    os.close(master)
    os.close(slave)


def test_nothing_can_be_typed_into_another_terminal(scorer: Any, terminal: tuple[int, str]) -> None:
    master, name = terminal
    typed = "call(16, {}, ctypes.c_ulong(termios.TIOCSTI | {}), ctypes.c_char_p(b'x'))"
    assert refused(scorer, *(typed.format(file, high) for file in (0, 3) for high in (0, 1 << 32)))
    reached = [typed.format(f"os.open({name!r}, os.O_RDONLY)", high) for high in (0, 1 << 32)]
    assert outcomes(scorer, *reached) == [2 if scorer.namespaces else 1] * 2
    assert not select.select([master], [], [], 0)[0]


def test_no_file_can_be_locked(scorer: Any, file: Path) -> None:
    attempts = [
        f"fcntl.ioctl(os.open({str(file)!r}, os.O_RDONLY), {FS_IOC_SETFLAGS}, struct.pack('i', {IMMUTABLE}))",
        f"fcntl.fcntl(os.open({str(file)!r}, os.O_RDONLY), {F_SETLEASE}, fcntl.F_RDLCK)",
        f"fcntl.fcntl(os.open({str(file)!r}, os.O_RDONLY), fcntl.F_SETLK, {LOCK})",
        f"fcntl.fcntl(os.open({str(file)!r}, os.O_RDONLY), fcntl.F_SETLKW, {LOCK})",
        f"fcntl.fcntl(os.open({str(file)!r}, os.O_RDONLY), {F_OFD_SETLK}, {LOCK})",
        f"fcntl.flock(os.open({str(file)!r}, os.O_RDONLY), fcntl.LOCK_EX)",
    ]
    assert outcomes(scorer, *attempts) == [2 if scorer.namespaces else 1] * 6
    own = [attempt.replace(str(file), "/usr/bin/env") for attempt in attempts]
    assert refused(scorer, *own)


def test_no_file_can_be_changed_or_linked(scorer: Any, file: Path) -> None:
    name, other = repr(str(file)), repr(f"{file}2")
    assert refused(
        scorer, f"open({name}, 'w')", f"open({other}, 'w')", f"open({name}, 'r+')", f"os.remove({name})",
        f"os.rename({name}, {other})", f"os.truncate({name}, 0)", f"os.chmod({name}, 0)", f"os.chown({name}, 0, 0)",
        f"os.utime({name})", f"os.link({name}, {other})", f"os.symlink('/etc/passwd', {other})", f"os.mkfifo({other})",
        f"os.setxattr({name}, 'user.x', b'')", f"os.mkdir({other})", f"os.rmdir({name})",
    )  # fmt: skip


def test_no_disk_can_be_filled(scorer: Any) -> None:
    places = ("", "/tmp", "/dev/shm", "/usr", "/confined", ".")
    assert refused(
        scorer, *(f"open('{place}/full', 'wb')" for place in places), "os.open('.', os.O_TMPFILE | os.O_RDWR)",
        f"call({CALL['memfd_create']}, b'x', 0)", "os.open('/usr', os.O_TRUNC)",
    )  # fmt: skip


def test_no_process_can_start_and_other_system_calls_fail(scorer: Any) -> None:
    programs = ["os.fork()", "os.execv('/bin/true', ['true'])", "os.posix_spawn('/bin/true', ['true'], {})"]
    assert refused(scorer, *programs, *(f"call({number}, 0, 0, 0, 0, 0)" for number in CALL.values()))


def test_a_fork_bomb_starts_nothing(scorer: Any) -> None:
    bomb = """
import os, threading
made = 0
for _ in range(1000):
    for start in (os.fork, threading.Thread(target=print).start):
        try:
            start()
            made += 1
        except (OSError, RuntimeError):
            pass
"""
    assert scorer.score(bomb, "assert made == 0") == 1


def test_no_network_is_reachable(scorer: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert refused(
            scorer, f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))", "socket.socketpair()",
            "socket.socket(socket.AF_UNIX)", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket.socket(fileno=3, family=1, type=1).sendmsg([b'x'])",
        )  # fmt: skip


def test_no_user_data_is_readable_with_namespaces(scorer: Any) -> None:
    """Without namespaces it is readable, and the log warns once."""
    files = [
        scorer.home / ".aws/credentials",
        f"/proc/{scorer.process.pid}/environ",
        "/proc/self/environ",
        "/etc/passwd",
    ]
    seen = outcomes(scorer, *(f"open({str(path)!r}, 'rb').read()" for path in files), "os.listdir('/proc')")
    warnings = scorer.log.read_text().count("run without namespaces")
    assert (seen, warnings) == (([2] * 5, 0) if scorer.namespaces else (["done"] * 5, 1))


def test_a_program_is_nobody_in_an_empty_root(scorer: Any) -> None:
    answer = "import os\nroot = os.listdir('/')\nme = os.getuid(), os.uname().nodename, os.listdir('/dev')"
    assert scorer.score(f"{answer}\nsecrets = dict(os.environ)", "assert 'planted' not in secrets.values()") == 1
    bound = {
        "usr",
        "lib",
        "lib64",
        "confined",
        "dev",
        "etc",
        scorer.home.parts[1],
    }  # the last holds the tests' interpreter
    held = scorer.score(answer, [f"assert {{*root}} <= {bound!r}", "assert me == (65534, 'sandbox', ['null'])"])
    assert held == (1 if scorer.namespaces else 0)


def test_endless_output_fills_no_memory_and_ends_in_time(scorer: Any) -> None:
    began = time.monotonic()
    before = scorer.ask("", ["assert True"])["memory"]
    for writes in (
        "sys.stdout.write('x' * 2**20)", "os.write(1, b'x' * 2**20)", "os.write(2, b'x' * 2**20)",
        "os.write(3, b'\\0\\xff\\xff\\xff' + b'x' * 2**20)", "sys.stderr.write('x' * 2**20)",
    ):  # fmt: skip
        result = scorer.ask(f"import os, sys\nwhile True:\n    {writes}", ["assert True"], 0.3)
        assert result["score"] == 0
        assert result["memory"] - before < 32 * 2**20
    assert time.monotonic() - began < 8


def test_output_of_a_function_is_truncated(scorer: Any) -> None:
    answer = "import sys\ndef talk(n):\n    for _ in range(n): sys.stdout.write('x' * 2**20)"
    test = "import contextlib, io\nheard = io.StringIO()\nwith contextlib.redirect_stdout(heard):\n    talk(64)\n"
    assert scorer.score(answer, test + "assert len(heard.getvalue()) == 2**20") == 1


def test_memory_and_cpu_time_are_limited(scorer: Any) -> None:
    greedy = "try:\n    x = bytearray(2**30)\n    fits = True\nexcept MemoryError:\n    fits = False"
    assert scorer.score(greedy, "assert not fits") == 1
    deaf = (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, "
        "ValueError): pass\nwhile True: pass"
    )
    began = time.monotonic()
    assert scorer.score(deaf, "assert True", 0.5) == 0
    assert time.monotonic() - began < 5


def test_a_response_that_times_out_leaves_no_process(scorer: Any) -> None:
    assert scorer.score("import time\ntime.sleep(60)", "assert True", 0.5) == 0
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and (alive := _confined(scorer.process.pid)):
        time.sleep(0.05)
    assert not alive


@pytest.mark.parametrize("end", ["os._exit(0)", "os.closerange(0, 64)", "raise SystemExit(0)", "ctypes.string_at(0)"])
def test_a_response_that_exits_scores_zero_and_the_next_is_scored(scorer: Any, end: str) -> None:
    assert scorer.score(f"{HEAD}{end}", ["assert True"]) == 0
    assert scorer.score(f"{HEAD}def end(): {end}" if "raise" not in end else "1/0", ["assert True", "end()"]) == 0
    assert scorer.score("x = 1", ["assert x == 1", "assert x == 2"]) == 0.5


def _confined(scorer: int) -> list[str]:
    """The sandboxed processes of a scorer."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (place / "cmdline").read_bytes()
            if b"confined.main" in command and _descends(int(place.name), scorer):
                found.append(command.decode())
    return found


def _descends(process: int, ancestor: int) -> bool:
    while process > 1:
        if process == ancestor:
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False
