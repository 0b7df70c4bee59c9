"""What each pod of a job runs: `node`, after it has dealt with what earlier starts left.

`python -m cupola_platform.launch.kubernetes.pod FOLDER RESTARTS ARGUMENTS`, where FOLDER is the job's and ARGUMENTS are
those of `cupola_platform.launch.node`.
"""

import os
import sys
from pathlib import Path

from cupola_platform.launch import node, starts
from cupola_platform.launch.kubernetes.manifests import ATTEMPT, INDEX


def main(folder: Path, restarts: int, arguments: list[str]) -> None:
    """Become torchrun, unless an earlier start has settled the job: then end, so that it does not start again."""
    attempt = int(os.environ.get(ATTEMPT) or 0)
    if attempt and starts.is_final(folder):
        print("cupola: the job needs no other start", flush=True)
        return
    if attempt and os.environ.get(INDEX, "0") == "0":  # the others' ranks wait for this node
        reason = starts.clear(folder, f"start {attempt} failed")
        starts.note(folder, attempt=attempt, of=restarts, reason=reason)
    node.main(arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
