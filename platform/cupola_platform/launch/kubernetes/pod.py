"""What each pod of a job runs: `node`, after it has dealt with what earlier starts left.

`python -m cupola_platform.launch.kubernetes.pod FOLDER RESTARTS ARGUMENTS`, where FOLDER is the job's and ARGUMENTS are
those of `cupola_platform.launch.node`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cupola_platform.launch import node, starts
from cupola_platform.launch.kubernetes.manifests import ATTEMPT, INDEX
from cupola_platform.launch.unshared.batch import Exchange


def main(folder: Path, restarts: int, arguments: Sequence[str]) -> None:
    """Run torchrun, unless an earlier start has settled the job. The exit status is 0 also for a settled job, so that
    it does not start again."""
    attempt = int(os.environ.get(ATTEMPT) or 0)
    if attempt and is_settled(folder, attempt, restarts):
        print("cupola: the job needs no other start", flush=True)
        return
    node.main(["--forward-signals", *arguments])


def is_settled(folder: Path, attempt: int, restarts: int) -> bool:
    """Whether an earlier start has settled the job. If not, the first pod clears what that start left and notes this
    one; the others' ranks wait for it."""
    exchange = Exchange.of_this_job()
    if exchange:
        exchange.bring()
    if starts.is_final(folder):
        return True
    if os.environ.get(INDEX, "0") == "0":
        reason = starts.hang_of(folder) or f"start {attempt} failed"
        starts.clear(folder)
        starts.note(folder, attempt=attempt, of=restarts, reason=reason)
        if exchange:
            exchange.clear()
            exchange.send()
    return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
