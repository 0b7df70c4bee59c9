"""Runs a model's Python in a process of its own, with little time, memory and no home."""

import re
import resource
import subprocess
import sys
import tempfile

SECONDS = 5
MEMORY = 512 << 20
"""Bytes of address space."""
FILE = 1 << 20
"""Bytes of a file that it may write."""


def runs(code: str, seconds: float = SECONDS) -> bool:
    """Whether a program ends with status 0.

    It runs isolated from the environment and from site packages, in an empty folder, with bounds on processor time, memory
    and file sizes. That stops accidents, not an attacker: run models that you do not trust in a container without network.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", code],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                preexec_fn=_bounds,
                start_new_session=True,
                check=False,
            )
        except (subprocess.TimeoutExpired, ValueError):  # ValueError: NUL in the code
            return False
        except OSError:  # longer than an argument may be
            return False
    return done.returncode == 0


def code_of(answer: str) -> str:
    """The first fenced block of an answer, or all of it."""
    found = re.search(r"```(?:python)?\s*\n(.*?)```", answer, re.DOTALL)
    return found[1] if found else answer


def _bounds() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
