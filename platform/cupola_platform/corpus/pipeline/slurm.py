"""datatrove's Slurm executor, extended to wait for its jobs.

A pipeline's jobs have a unique name, by which the driver waits for them. If it is killed, the next driver cancels them
before it submits the remaining tasks.
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

from cupola_platform.clusters import SlurmCluster
from cupola_platform.errors import ConfigError, StageFailedError

POLL_SECONDS = 2.0
"""Seconds between queries of the queue, which all users of the cluster share."""

SETTLE_SECONDS = 40.0
"""Seconds until a finished job's output is visible on a shared file system: NFS caches folders for 30."""

AWAY_SECONDS = 900.0
"""Seconds that a controller may be away, as during an upgrade, before giving up."""


class SlurmExecutor(SlurmPipelineExecutor):  # type: ignore[misc]
    """Submits a pipeline's tasks and returns once its jobs are gone, whether they succeeded or not."""

    def __init__(
        self, cluster: SlurmCluster, pipeline: Sequence[PipelineStep], tasks: int, folder: Path, *, workers: int,
        memory_gb: int,
    ) -> None:  # fmt: skip
        """A cluster's own settings say where the tasks run and in which environment.

        Args:
            workers: tasks that run at once.
            memory_gb: memory of each, in GB.
        """
        self._output = folder / "slurm"
        self._log = folder.parent.parent / "log.txt"  # the driver's log, which also gets sbatch's output
        super().__init__(
            pipeline=list(pipeline),
            tasks=tasks,
            workers=workers,
            tasks_per_job=-(-tasks // workers),  # a job runs several tasks in sequence, so that imports are done once
            mem_per_cpu_gb=memory_gb,
            time=cluster.time_limit or "",
            partition=cluster.partition or "",
            qos="",  # datatrove's default, "normal", does not exist on most clusters
            job_name=f"cupola-{folder.name}-{blake3(str(folder).encode()).hexdigest()[:12]}",
            env_command=_environment(cluster),
            sbatch_args={**({"account": cluster.account} if cluster.account else {}), **cluster.sbatch},
            logging_dir=str(folder),
            slurm_logs_folder=str(self._output),
            mail_user=None,
        )

    def launch_job(self) -> None:
        """Submit the unfinished tasks, and wait.

        Raises:
            StageFailedError: Slurm does not respond.
            ConfigError: sbatch refused, or the nodes do not see the folder.
        """
        ended = _ask("scancel", "--name", self.job_name)
        if ended.returncode:
            raise StageFailedError(f"Slurm does not respond: {_last_line(ended.stderr)}. Nothing was submitted.")
        self._wait()
        try:
            super().launch_job()
        except subprocess.CalledProcessError as error:
            _ask("scancel", "--name", self.job_name)  # Slurm may have it although sbatch failed
            raise ConfigError(
                f"sbatch refused {self.job_name} with exit status {error.returncode}. See {self._log}, and check "
                "executor.memory_gb and the cluster's partition, account, time_limit and sbatch."
            ) from None
        self._wait()
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.get_incomplete_ranks() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self.get_incomplete_ranks() and not any(self._output.glob("*.out")):  # which Slurm itself writes
            raise ConfigError(
                f"The cluster's nodes wrote nothing into {self._output}, so they do not share that folder. Mount the "
                "workspace on every node at this path, or set shared = false for the cluster: texts are then prepared "
                "on this machine."
            )

    def launch_merge_stats(self) -> None:
        """Do nothing: the statistics are not used, and if a task failed this job would stay in the queue forever."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """datatrove's arguments without the empty ones."""
        options = super().get_sbatch_args(max_array)
        return {key: value for key, value in options.items() if value or key not in ("partition", "time")}

    def _wait(self) -> None:
        """Wait until no job is in the queue. A controller that is away for a while does not mean that jobs are gone."""
        answered = time.monotonic()
        while (
            asked := _ask("squeue", "--noheader", "--format=%i", "--name", self.job_name)
        ).returncode or asked.stdout.strip():
            if not asked.returncode:
                answered = time.monotonic()
            elif time.monotonic() - answered > AWAY_SECONDS:
                raise StageFailedError(
                    f"Slurm does not respond: {_last_line(asked.stderr)}. Its jobs continue. The same command cancels "
                    "them and submits the remaining tasks."
                )
            time.sleep(POLL_SECONDS)


def _environment(cluster: SlurmCluster) -> str:
    """The lines of a job's script ahead of its tasks."""
    python = cluster.python or Path(sys.executable)
    ours = f"export PATH={shlex.quote(str(python.parent))}:$PATH"
    if cluster.python is None:
        ours += f" PYTHONPATH={shlex.quote(':'.join(path for path in sys.path if path))}"
    variables = [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    return "\n".join([ours, *variables, *cluster.setup])


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1].rstrip(".")


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
