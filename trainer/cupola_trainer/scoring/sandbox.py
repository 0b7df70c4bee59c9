"""Sandbox for model-written programs: bubblewrap namespaces, if the kernel allows them, and a seccomp filter.

A program sees an empty, read-only root with only the interpreter, no network and no other process, and may only make
the system calls in `CALLS`. Without namespaces, the filter, rlimits and an empty environment remain: it can then read
what its user can, but cannot write, send or signal anything.
"""

import fcntl
import functools
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pyseccomp as seccomp

from cupola_platform.errors import ConfigError

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).with_name("confined")
START = "import sys; sys.path.insert(0, {folder!r}); from confined.main import main; main()"
CALLS = (
    "access", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "dup", "exit", "exit_group",
    "faccessat", "faccessat2", "fstat", "futex", "getcwd", "getdents64", "getegid", "geteuid", "getgid", "getpid",
    "getrandom", "gettid", "gettimeofday", "getuid", "lseek", "lstat", "madvise", "mmap", "mprotect", "mremap",
    "munmap", "nanosleep", "newfstatat", "poll", "ppoll", "pread64", "read", "readlink", "readlinkat", "readv", "rseq",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_yield", "sigaltstack", "stat", "statx", "sysinfo", "uname",
    "write",
)  # fmt: skip
"""System calls that an interpreter needs to compute and import; all others fail with EPERM."""
FCNTL = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL)
"""Excludes commands that set an owner, signal, lock, lease or seal."""
FIONCLEX, FIOCLEX = 0x5450, 0x5451
IOCTL = (FIONCLEX, FIOCLEX)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@functools.cache
def call_filter() -> bytes:
    """The seccomp filter as BPF bytecode.

    Raises:
        ConfigError: this machine has no seccomp.
    """
    try:
        rules = seccomp.SyscallFilter(seccomp.ERRNO(1))  # EPERM
        for name in CALLS:
            rules.add_rule(seccomp.ALLOW, name)
        rules.add_rule(seccomp.ALLOW, "openat", seccomp.Arg(2, seccomp.MASKED_EQ, WRITING, 0))
        rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(2, seccomp.EQ, 0))  # reads limits, sets nothing
        for name, commands in (("fcntl", FCNTL), ("ioctl", IOCTL)):
            for command in commands:
                rules.add_rule(seccomp.ALLOW, name, seccomp.Arg(1, seccomp.EQ, command))
        with tempfile.TemporaryFile() as file:
            rules.export_bpf(file)
            file.seek(0)
            return file.read()
    except (OSError, RuntimeError, AttributeError) as error:
        raise unconfined() from error


@functools.cache
def command() -> tuple[str, ...]:
    """The command that starts `confined.main` in the best sandbox this machine allows; logs once if that is weak.

    Raises:
        ConfigError: running as root without namespaces.
    """
    bwrap = shutil.which("bwrap")
    why = "bubblewrap is not installed"
    if bwrap:
        held = (bwrap, *namespaces(), *interpreter("/"))
        tried = subprocess.run([*held[:-1], "pass"], check=False, capture_output=True, text=True, env={})
        if tried.returncode == 0:
            return held
        why = tried.stderr.strip() or f"bwrap exited with status {tried.returncode}"
    if os.geteuid() == 0:
        raise ConfigError(
            f"Model-written programs are not run as root without namespaces ({why}). Install bubblewrap (apt-get "
            "install bubblewrap) if the kernel allows user namespaces, or run as a regular user."
        )
    log.warning(
        "Model-written programs run without namespaces (%s): seccomp prevents writing, sending and "
        "signaling, but they can read what this user can. See docs/security.md.", why,
    )  # fmt: skip
    return interpreter(str(PACKAGE.parent))


def unconfined() -> ConfigError:
    """The error to raise before any model-written code runs."""
    return ConfigError(
        "This machine cannot sandbox a process (needs seccomp on Linux, with libseccomp), so no code was run. "
        "Use another scorer or another machine."
    )


def interpreter(folder: str) -> tuple[str, ...]:
    """The command that runs `confined` from a folder, with this process's interpreter and no site packages."""
    return (_python(), "-I", "-S", "-B", "-c", START.format(folder=folder))


def namespaces() -> list[str]:
    """Bubblewrap's options."""
    library, python = Path(sysconfig.get_path("stdlib")).parent, Path(_python())
    options = [
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    options += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "sandbox"]
    options += ["--new-session", "--die-with-parent", "--clearenv", "--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib64"):
        place = Path("/", name)
        options += ["--symlink", str(place.readlink()), str(place)] if place.is_symlink() else []
        options += ["--ro-bind", str(place), str(place)] if place.is_dir() and not place.is_symlink() else []
    for place in (library, python):
        options += [] if place.is_relative_to("/usr") else ["--ro-bind", str(place), str(place)]
    options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--dev-bind", "/dev/null", "/dev/null"]
    return [*options, "--ro-bind", str(PACKAGE), "/confined", "--remount-ro", "/", "--chdir", "/"]


def _python() -> str:
    """The real interpreter, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
