"""Runs a command on one node of a Slurm job, and sends the job back into the queue if its first node is lost.

`python -m cupola_platform.launch.slurm.node COMMAND ...`. The batch step, which restarts failed jobs, runs on the first
node. Without it, a job that may lose nodes (`--no-kill`) would keep its other nodes for good: so these look after it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from cupola_platform.launch.slurm.commands import known_of, state_of

PATIENCE = 1800.0
"""Seconds to wait after a failure, for Slurm to end this step or to notice that the first node is gone."""
LOOK_EVERY = 15.0


def main(command: Sequence[str]) -> int:
    """Run the command. Returns its exit status."""
    node, job = os.environ["SLURM_NODEID"], os.environ["SLURM_JOB_ID"]
    signal.signal(signal.SIGTERM, lambda *_: None)  # Slurm signals each process of a step, so the command has it too
    process = subprocess.Popen(command)
    if node == "1":  # one is enough: a rank may wait for lost peers longer than Slurm takes to notice
        threading.Thread(target=look_after, args=(job, float("inf")), daemon=True).start()
    status = process.wait()
    if status and node != "0":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(abs(status)))  # srun ends a failed step on every node
        look_after(job, time.monotonic() + PATIENCE)
    return status


def look_after(job: str, deadline: float) -> None:
    """Requeue the job once its first node is lost; Slurm then ends this process."""
    while time.monotonic() < deadline:
        head = known_of(job).get("BatchHost")
        if head and state_of([head]).get(head, "").startswith(("down", "fail")):
            print(f"cupola: {head}, the first node, is lost: back into the queue", flush=True)
            subprocess.run(["scontrol", "requeue", job], check=False)
        time.sleep(LOOK_EVERY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
