"""Runs a command on one node of a Slurm job, and sends the job back into the queue if its first node is lost.

`python -m cupola_platform.launch.slurm_node COMMAND ...`. The batch step, which restarts failed jobs, runs on the first
node. A job that may lose nodes (`--no-kill`) keeps its allocation without it, for good: so the other nodes look after it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from cupola_platform.launch.slurm_batch import known_of, state_of

PATIENCE = 1800.0
"""Seconds to wait after a failure, for Slurm to end this step or to notice that the first node is gone."""
LOOK_EVERY = 5.0


def main(command: Sequence[str]) -> int:
    """Run the command. Returns its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # Slurm signals each process of a step, so the command has it too
    status = subprocess.run(command, check=False).returncode
    if status and os.environ["SLURM_NODEID"] != "0":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(status))  # srun ends a failed step on every node
        _look_after(os.environ["SLURM_JOB_ID"])
    return status


def _look_after(job: str) -> None:
    """Wait until Slurm ends this step, or requeue the job once its first node is lost."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        head = known_of(job).get("BatchHost")
        if head and state_of([head]).get(head, "").startswith(("down", "fail")):
            print(f"cupola: {head}, the first node, is lost: back into the queue", flush=True)
            subprocess.run(["scontrol", "requeue", job], check=False)
            time.sleep(PATIENCE)  # Slurm ends this process
        time.sleep(LOOK_EVERY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
