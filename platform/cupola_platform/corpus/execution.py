"""Where the preparation's pipelines run: datatrove's executors, on this machine, on Slurm or on Ray.

Each task that ended leaves a completion marker; a pipeline that is run again does the tasks without one.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import multiprocess
import psutil
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from cupola_platform.corpus.config import ExecutorConfig
from cupola_platform.corpus.documents import DEAD_WORKER, Progress
from cupola_platform.errors import StageFailedError

POLL_SECONDS = 0.25
MISSED_POLLS = 8
"""Looks at the worker processes after which one that is gone counts as dead: a pool at its end has ended them itself."""

_PR_SET_PDEATHSIG = 1


class Runner:
    """Runs pipelines one after another, in one work folder."""

    def __init__(self, config: ExecutorConfig, work: Path, progress: Progress) -> None:
        self.config, self.work, self.progress = config, work, progress
        multiprocess.set_forkserver_preload(["cupola_platform.corpus.preloaded"])

    def run(self, name: str, pipeline: Sequence[PipelineStep], tasks: int) -> None:
        """Run what is not done of `tasks` tasks.

        Raises:
            StageFailedError: a worker died, or tasks failed; names the log.
            whatever a task raises, where it ran on this machine.
        """
        folder = self._folder(name)
        if _done(folder) < tasks:
            ended = threading.Event()
            watch = threading.Thread(target=self._watch, args=(name, folder, tasks, ended), daemon=True)
            watch.start()
            try:
                self._executor(list(pipeline), tasks, folder).run()
                while self.config.kind == "slurm" and _done(folder) < tasks and not ended.wait(POLL_SECONDS):
                    pass  # Slurm's executor only submits
            finally:
                ended.set()
                watch.join()
        if _done(folder) < tasks:
            raise StageFailedError(f"{name}: {tasks - _done(folder)} of {tasks} tasks failed. Read {folder / 'logs'}.")
        self.progress(name, tasks, tasks)

    def finished(self, name: str, tasks: int) -> bool:
        """Whether all tasks of a pipeline are done."""
        return _done(self._folder(name)) >= tasks

    def _folder(self, name: str) -> Path:
        return self.work / "runs" / name.replace(" ", "_")

    def _executor(self, pipeline: list[PipelineStep], tasks: int, folder: Path) -> PipelineExecutor:
        workers = min(self.config.workers or len(os.sched_getaffinity(0)), tasks)
        options: dict[str, Any] = {"pipeline": pipeline, "tasks": tasks, "logging_dir": str(folder)}
        if self.config.kind == "local":
            return LocalPipelineExecutor(workers=workers, **options)
        options |= {"mem_per_cpu_gb": self.config.memory_gb, "workers": self.config.workers or -1}
        if self.config.kind == "ray":
            from datatrove.executor.ray import RayPipelineExecutor

            return RayPipelineExecutor(**options)
        from datatrove.executor.slurm import SlurmPipelineExecutor

        return SlurmPipelineExecutor(
            time=self.config.time,
            partition=self.config.partition,
            job_name=f"cupola-{folder.name}",
            env_command=f"export PYTHONPATH={':'.join(path for path in sys.path if path)}",
            venv_path=sys.prefix + "/bin/activate",
            sbatch_args=self.config.sbatch,
            slurm_logs_folder=str(folder / "slurm"),
            mail_user=None,
            **options,
        )

    def _watch(self, name: str, folder: Path, tasks: int, ended: threading.Event) -> None:
        """Show how many tasks are done, and end this process when a worker dies: a pool would wait for it forever."""
        seen: set[int] = set()
        missed, told = 0, -1
        while not ended.wait(POLL_SECONDS):
            if (done := _done(folder)) > told:
                self.progress(name, done, tasks)
                told = done
            workers = _pool_workers()
            missed = missed + 1 if seen - workers else 0
            seen |= workers
            if missed == MISSED_POLLS:
                print(f"A worker process died in {name}", file=sys.stderr, flush=True)
                os._exit(DEAD_WORKER)


def end_with_parent() -> None:
    """A worker must not go on writing when its driver was killed: another one may do the same task by then."""
    if multiprocess.parent_process() is not None:
        die_with_parent()


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _done(folder: Path) -> int:
    markers = folder / "completions"
    return len(list(markers.iterdir())) if markers.is_dir() else 0


def _pool_workers() -> set[int]:
    """Processes that were forked by the server of this process's pools."""
    server = multiprocess.forkserver._forkserver._forkserver_pid
    try:
        return {child.pid for child in psutil.Process(server).children()} if server else set()
    except psutil.NoSuchProcess:
        return set()
