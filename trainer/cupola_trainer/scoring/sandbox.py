"""What holds a program that a model wrote: namespaces by bubblewrap, where the kernel gives them, and a seccomp filter.

A program sees an empty, read-only root with the interpreter in it, no network, no other process, and may make the calls
of `CALLS` alone. Without namespaces the filter, the rlimits and the empty environment are left: then it can read
whatever its user can, and cannot write, send or signal it anywhere.
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
"""What a running interpreter needs to compute and to import; every other call fails with EPERM."""
FCNTL = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL)
"""No owner, signal, lock, lease or seal is set on a file."""
FIONCLEX, FIOCLEX = 0x5450, 0x5451
IOCTL = (FIONCLEX, FIOCLEX)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@functools.cache
def call_filter() -> bytes:
    """The seccomp filter, in the kernel's bytes.

    Raises:
        ConfigError: this machine has no seccomp.
    """
    try:
        rules = seccomp.SyscallFilter(seccomp.ERRNO(1))  # EPERM
        for name in CALLS:
            rules.add_rule(seccomp.ALLOW, name)
        rules.add_rule(seccomp.ALLOW, "openat", seccomp.Arg(2, seccomp.MASKED_EQ, WRITING, 0))
        rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(2, seccomp.EQ, 0))  # asks, and sets nothing
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
    """What starts `confined.main` held as well as this machine can; says once in the log where that is not well.

    Raises:
        ConfigError: as root without namespaces.
    """
    bwrap = shutil.which("bwrap")
    why = "bubblewrap is not installed"
    if bwrap:
        held = (bwrap, *namespaces(), *interpreter("/"))
        tried = subprocess.run([*held[:-1], "pass"], check=False, capture_output=True, text=True, env={})
        if tried.returncode == 0:
            return held
        why = tried.stderr.strip() or f"bwrap ended with status {tried.returncode}"
    if os.geteuid() == 0:
        raise ConfigError(
            f"A program that a model wrote is not run as root without namespaces of its own ({why}). Install "
            "bubblewrap (apt-get install bubblewrap) where the kernel allows user namespaces, or run as an "
            "ordinary user."
        )
    log.warning(
        "Programs that a model wrote run without namespaces of their own (%s): seccomp keeps them from writing, "
        "sending and signalling, but they can read what this user can. See docs/security.md.", why,
    )  # fmt: skip
    return interpreter(str(PACKAGE.parent))


def unconfined() -> ConfigError:
    """Raised before any code of a model's has run."""
    return ConfigError(
        "This machine cannot confine a process (seccomp on Linux, with libseccomp), so no response's code was run. "
        "Use another reward than code here, or another machine."
    )


def interpreter(folder: str) -> tuple[str, ...]:
    """The command that runs `confined` from a folder, with the bare interpreter of this process."""
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
    """The interpreter's own file, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))
