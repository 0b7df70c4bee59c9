"""Runs the preparation's pipelines with datatrove's executors: on this machine, on Slurm or on Ray.

Each finished task leaves a completion marker; a pipeline that is run again does only the tasks without one.
"""

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import multiprocess
import psutil
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from cupola_platform.clusters import Cluster, SlurmCluster
from cupola_platform.corpus.config import ExecutorConfig
from cupola_platform.corpus.core.documents import DEAD_WORKER, Document, Progress
from cupola_platform.durable import sync_file_system
from cupola_platform.errors import StageFailedError

POLL_SECONDS = 0.25
MISSED_POLLS = 8
"""Polls after which a missing worker counts as dead rather than ended by its finished pool."""


class Runner:
    """Runs pipelines one after another, in one work folder."""

    def __init__(self, config: ExecutorConfig, cluster: Cluster | None, work: Path, progress: Progress) -> None:
        self.config, self.cluster, self.work, self.progress = config, cluster, work, progress
        multiprocess.set_forkserver_preload(["cupola_platform.corpus.pipeline.preloaded"])
        if not config.ray and not isinstance(cluster, SlurmCluster) and config.workers != 1:
            multiprocess.forkserver.ensure_running()  # its imports overlap with listing the sources

    def run(self, name: str, pipeline: Sequence[PipelineStep], tasks: int) -> None:
        """Run the unfinished ones of `tasks` tasks.

        Raises:
            StageFailedError: a worker died, or tasks failed; names the log.
            Exception: whatever a task on this machine raised.
        """
        folder = self._folder(name)
        if _done(folder) < tasks:
            ended = threading.Event()
            watch = threading.Thread(target=self._watch, args=(name, folder, tasks, ended), daemon=True)
            watch.start()
            try:
                self._executor([*pipeline, Sync(self.work)], tasks, folder).run()
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
        cluster, workers = self.cluster, self.config.workers
        if cluster:
            workers = workers or cluster.limit or cluster.nodes * cluster.per_node
        options: dict[str, Any] = {"pipeline": pipeline, "tasks": tasks, "logging_dir": str(folder)}
        if self.config.ray:
            return _on_ray(workers or -1, self.config.memory_gb, options)
        if isinstance(cluster, SlurmCluster):
            from cupola_platform.corpus.pipeline.slurm import SlurmExecutor

            return SlurmExecutor(cluster, pipeline, tasks, folder, workers=workers, memory_gb=self.config.memory_gb)
        return LocalPipelineExecutor(workers=min(workers or len(os.sched_getaffinity(0)), tasks), **options)

    def _watch(self, name: str, folder: Path, tasks: int, ended: threading.Event) -> None:
        """Report progress, and end this process if a worker dies, because the pool would wait for it forever."""
        seen: set[int] = set()
        missed, shown = 0, -1
        while not ended.wait(POLL_SECONDS):
            if (done := _done(folder)) > shown:
                self.progress(name, done, tasks)
                shown = done
            workers = _pool_workers()
            missed = missed + 1 if seen - workers else 0
            seen |= workers
            if missed == MISSED_POLLS:
                print(f"A worker process died in {name}", file=sys.stderr, flush=True)
                os._exit(DEAD_WORKER)


class Sync(PipelineStep):  # type: ignore[misc]
    """The last step of every task: sync its output to disk before its completion marker is written."""

    type, name = "writer", "sync"

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from data or ()
        sync_file_system(self.work)


def _on_ray(workers: int, memory_gb: int, options: dict[str, Any]) -> PipelineExecutor:
    """An executor on the cluster at RAY_ADDRESS, or on a Ray started here."""
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        paths = ":".join(
            path for path in sys.path if path
        )  # on the shared file system, like everything the workers read
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False)
    return RayPipelineExecutor(workers=workers, mem_per_cpu_gb=memory_gb, **options)


def _done(folder: Path) -> int:
    markers = folder / "completions"
    return len(list(markers.iterdir())) if markers.is_dir() else 0


def _pool_workers() -> set[int]:
    """PIDs of the processes forked by this process's fork server."""
    server = multiprocess.forkserver._forkserver._forkserver_pid
    try:
        return {child.pid for child in psutil.Process(server).children()} if server else set()
    except psutil.NoSuchProcess:
        return set()
