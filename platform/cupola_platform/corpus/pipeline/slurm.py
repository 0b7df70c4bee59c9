"""datatrove's Slurm executor that waits for its jobs: the original only submits them.

A pipeline's jobs bear a name that is only theirs, so that they are found again: by the driver that waits for them, and
by the one that comes after it was killed, which ends them before it submits what they left.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from cupola_platform.corpus.config import ExecutorConfig
from cupola_platform.errors import StageFailedError

POLL_SECONDS = 2.0
"""Between two looks at the queue, which all users of a cluster share."""

SETTLE_SECONDS = 40.0
"""How long what a job wrote may stay unseen on a shared file system after the job is gone: NFS keeps folders for 30."""

AWAY_SECONDS = 900.0
"""How long a controller may be away, as for an upgrade, before the jobs are given up."""


class SlurmExecutor(SlurmPipelineExecutor):  # type: ignore[misc]
    """Submits a pipeline's tasks, and returns when its jobs are gone, whatever became of them."""

    def __init__(self, config: ExecutorConfig, pipeline: Sequence[PipelineStep], tasks: int, folder: Path) -> None:
        paths = ":".join(path for path in sys.path if path)
        self._log = folder.parent.parent / "log.txt"  # the driver's, where sbatch writes, too
        super().__init__(
            pipeline=list(pipeline),
            tasks=tasks,
            workers=config.workers or -1,
            # a job runs several tasks one after the other: it imports what they need once
            tasks_per_job=-(-tasks // config.workers) if config.workers else 1,
            mem_per_cpu_gb=config.memory_gb,
            time=config.time,
            partition=config.partition,
            qos="",  # clusters have none called normal, as datatrove would have it
            job_name=f"cupola-{folder.name}-{blake3(str(folder).encode()).hexdigest()[:12]}",
            env_command=f"export PATH={shlex.quote(sys.prefix)}/bin:$PATH PYTHONPATH={shlex.quote(paths)}",
            sbatch_args=config.sbatch,
            logging_dir=str(folder),
            slurm_logs_folder=str(folder / "slurm"),
            mail_user=None,
        )

    def launch_job(self) -> None:
        """Submit what is not done, and wait.

        Raises:
            StageFailedError: sbatch refuses it, or Slurm does not answer.
        """
        ended = _ask("scancel", "--name", self.job_name)
        if ended.returncode:
            raise StageFailedError(f"Slurm does not answer: {_last_line(ended.stderr)}. Nothing was submitted.")
        self._wait()
        try:
            super().launch_job()
        except subprocess.CalledProcessError as error:
            raise StageFailedError(
                f"sbatch refused {self.job_name} with exit status {error.returncode}; it says why in {self._log}. "
                "Look at executor.partition, time, memory_gb and sbatch."
            ) from None
        self._wait()
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.get_incomplete_ranks() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def launch_merge_stats(self) -> None:
        """Nothing: nobody reads these statistics, and where a task failed the job would stay in the queue for ever."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """The same without an option that has no value."""
        options = super().get_sbatch_args(max_array)
        return options if self.partition else {key: value for key, value in options.items() if key != "partition"}

    def _wait(self) -> None:
        """Until no job is in the queue. A controller that is away for a while says nothing of the jobs."""
        answered = time.monotonic()
        while (
            asked := _ask("squeue", "--noheader", "--format=%i", "--name", self.job_name)
        ).returncode or asked.stdout.strip():
            if not asked.returncode:
                answered = time.monotonic()
            elif time.monotonic() - answered > AWAY_SECONDS:
                raise StageFailedError(
                    f"Slurm does not answer: {_last_line(asked.stderr)}. Its jobs go on; the same command ends them "
                    "and submits what is left."
                )
            time.sleep(POLL_SECONDS)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1].rstrip(".")


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
