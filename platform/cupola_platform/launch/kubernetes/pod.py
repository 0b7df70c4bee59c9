"""What each pod of a job runs: `node`, after it has dealt with what earlier starts left.

`python -m cupola_platform.launch.kubernetes.pod FOLDER RESTARTS ARGUMENTS`, where FOLDER is the job's and ARGUMENTS are
those of `cupola_platform.launch.node`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from cupola_platform.launch import starts
from cupola_platform.launch.kubernetes.manifests import ATTEMPT, INDEX


def main(folder: Path, restarts: int, arguments: Sequence[str]) -> int:
    """Run torchrun, unless an earlier start has settled the job. Returns the exit status: 0 also for a settled job,
    so that it does not start again."""
    attempt = int(os.environ.get(ATTEMPT) or 0)
    if attempt and starts.is_final(folder):
        print("cupola: the job needs no other start", flush=True)
        return 0
    if attempt and os.environ.get(INDEX, "0") == "0":  # the others' ranks wait for this node
        reason = starts.hang_of(folder) or f"start {attempt} failed"
        starts.clear(folder)
        starts.note(folder, attempt=attempt, of=restarts, reason=reason)
    agent = subprocess.Popen([sys.executable, "-m", "cupola_platform.launch.node", *arguments])
    signal.signal(signal.SIGTERM, lambda *_: let_save(agent.pid))
    status = agent.wait()
    return 128 - status if status < 0 else status


def let_save(agent: int) -> None:
    """Ask the ranks to save and exit; torchrun itself only if it has none yet, because it kills ranks that take more
    than 30 seconds."""
    with suppress(psutil.NoSuchProcess):
        torchrun = psutil.Process(agent)
        for process in torchrun.children() or [torchrun]:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
