"""Running one job: write its file, start it, follow its metrics, interpret its exit."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cupola_flows.execution import restarts
from cupola_flows.execution.code_version import code_version, modules_of
from cupola_flows.execution.context import StageContext
from cupola_flows.execution.locks import alone
from cupola_flows.execution.uploading import EVENTS, backup_of, uploaded
from cupola_platform.artifacts import Artifact, fingerprint
from cupola_platform.errors import (
    BY_NAME,
    CancelledError,
    ConfigError,
    CupolaError,
    DetachedError,
    StageFailedError,
)
from cupola_platform.json_lines import numbered
from cupola_platform.launch import handle
from cupola_platform.launch.interface import Launcher, RunningJob
from cupola_platform.launch.launcher import make_launcher, that_fit
from cupola_platform.launch.starts import clear
from cupola_trainer.config import (
    AnyJob,
    LayoutConfig,
    TrainJob,
    write_job,
)

JOB_FILE = "job.json"
LOOK_EVERY = 0.5
"""Seconds between reads of a job's metrics."""
GRACE = 20.0
"""Seconds for a stopped job to finish a step and save, so that a cancelled run ends within 30."""
GRACE_UNRESPONSIVE = 2.0
"""The same for a job whose ranks have all stopped responding."""
TAIL = 15
"""Lines of the log in an error message."""


@dataclass(frozen=True)
class JobResult:
    """Result of a job: the folder to publish, and its final metrics."""

    folder: Path
    metrics: dict[str, float]


class MetricsTail:
    """Reads new lines of `metrics.jsonl`. If a resumed job replaces the file, reads it from the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self.inode = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Complete lines since the last call."""
        try:
            with self.path.open("rb") as file:
                if (inode := os.fstat(file.fileno()).st_ino) != self.inode:
                    self.at, self.inode = 0, inode
                file.seek(self.at)
                block = file.read()
        except FileNotFoundError:
            return
        whole = block[: block.rfind(b"\n") + 1]
        self.at += len(whole)
        for _, line in numbered(whole.split(b"\n")):
            with suppress(ValueError):  # after a power cut, lines may be zeros
                yield json.loads(line)


def run_job(ctx: StageContext, job: AnyJob, layouts: Sequence[LayoutConfig] = ()) -> JobResult:
    """Start a job or resume it from its newest checkpoint, and follow it until it ends. A job that an earlier command
    left on a cluster is followed, not started again.

    Args:
        layouts: layouts to try in turn where there is no room for the job's own.

    Raises:
        CupolaError: the error that the job wrote to `error.json`.
        StageFailedError: it crashed or hung more often than allowed; with the log's path and last lines.
        CancelledError: it was stopped from outside, after it saved.
        DetachedError: this process was asked to end, and the job goes on on its cluster.
    """
    starts = restarts.Starts(allowed=1 + (job.faults.max_restarts if isinstance(job, TrainJob) else 1))
    result: JobResult = ctx.step(_attempt, ctx, job, starts, layouts)
    return result


def run_once(
    ctx: StageContext, job: AnyJob, *, kind: str, config: Mapping[str, Any], parents: Sequence[Artifact]
) -> Artifact:
    """Run a job whose result several stages share, as a separate artifact; reuses an earlier one. Of stages that run
    side by side and need the same, one makes it and the others wait.

    Args:
        config: everything that determines the result, besides the parents and the code.
    """
    mark = fingerprint({kind: dict(config)}, [parent.digest for parent in parents], code_version(*modules_of(job)))
    waits = partial(ctx.display.say, f"{ctx.name}: waiting for the {kind} that another stage makes.")
    with alone(ctx.workspace.folder("work") / mark, waits):
        if known := ctx.workspace.find(mark):
            return known
        result = run_job(ctx, job)
        return ctx.publish_aside(
            result.folder, kind=kind, parents=parents, metrics=result.metrics, config=config, fingerprint=mark
        )


def _attempt(
    ctx: StageContext, job: AnyJob, starts: restarts.Starts, layouts: Sequence[LayoutConfig] = ()
) -> JobResult:
    launcher = make_launcher(ctx.workspace.settings, ctx.run_on)
    running = _left_running(ctx, job)
    if running is None and ctx.lease:
        ctx.lease.job = None
    if running is None and (earlier := read_result(job)) is not None:
        return earlier
    if (job.output / "result.json").exists():  # it was published, but the artifact is now missing or corrupt
        shutil.rmtree(job.output)
    job.output.mkdir(parents=True, exist_ok=True)
    if running is None:
        if isinstance(job, TrainJob):
            backup_of(ctx, job).restore(lambda text: ctx.display.say(f"{ctx.name}: {text}"))
        (job.output / "error.json").unlink(missing_ok=True)
    log = ctx.workspace.folder("logs") / f"{ctx.name}-{ctx.fingerprint[:12]}.log"
    jobs = [job, *(job.but(layout=layout) for layout in layouts if layout != job.layout)]
    fitting = [jobs[position] for position in that_fit(launcher, [each.layout.world_size for each in jobs])]
    start = partial(_start, ctx, launcher, fitting, log, starts.allowed - 1)
    with ctx.taking(fitting[0].layout.world_size, wait=running is None), uploaded(ctx, job, log):
        status, ended = _run_to_end(ctx, job, log, starts, running, start)
    _forget(ctx, job)
    if error := error_of(job):
        raise type(error)(f"stage {ctx.name}: {error}")
    result = read_result(job)
    code, why = ended.poll(), ended.reason()
    if result is None and (status == "preempted" or why == handle.CANCELLED or (job.output / handle.STOP).exists()):
        saved = " and has saved" if status == "preempted" else ""
        raise CancelledError(f"stage {ctx.name} was stopped{saved}. Run the same command to resume.")
    if code != 0 or result is None:
        failure = restarts.CrashedError if starts.left and not ended.outlives else StageFailedError
        often = f"; started {starts.done} times" if starts.done > 1 else ""
        why = why or f"its processes ended with status {code}"
        raise failure(f"stage {ctx.name}: {why}{often}. Log: {log}\n{tail(log)}")
    return result


def _left_running(ctx: StageContext, job: AnyJob) -> RunningJob | None:
    """The job that an earlier command left on a cluster, wherever this one would send it."""
    known = handle.read(job.output)
    if known is None:
        return None
    if known.cluster not in ctx.workspace.settings.clusters:
        raise ConfigError(
            f"stage {ctx.name}: job {known.id} was left on cluster {known.cluster!r}, which cupola.toml no longer has. "
            f"Name it again, or remove {job.output / handle.FILE} if that job has ended."
        )
    return make_launcher(ctx.workspace.settings, known.cluster).attach(job.output / JOB_FILE)


def _start(ctx: StageContext, launcher: Launcher, jobs: Sequence[AnyJob], log: Path, again: int) -> RunningJob:
    """Start the first of some jobs that differ in their layouts only; the engine may fall back to the others."""
    files = []
    for number, each in enumerate(jobs):
        path = each.output / (JOB_FILE if number == 0 else f"job-{number}.json")
        write_job(each, path)
        files.append((path, each.layout.world_size))
    (first, ranks), *others = files
    running = launcher.start(first, processes=ranks, log=log, fallbacks=others, restarts=again)
    if ctx.lease and (known := handle.read(first.parent)) and running.outlives:
        ctx.lease.note(known)
    return running


def _run_to_end(
    ctx: StageContext,
    job: AnyJob,
    log: Path,
    starts: restarts.Starts,
    running: RunningJob | None,
    start: Callable[[], RunningJob],
) -> tuple[str, RunningJob]:
    """Run the job's processes until they end, restarting them if they hang.
    Returns the job's last status, and the job."""
    while True:
        starts.done += 1
        if running:
            ctx.display.say(f"{ctx.name}: attached to {running.name}.")
        else:
            clear(job.output)
            ctx.display.note(ctx.name, f"sending the job to {ctx.run_on}" if ctx.run_on else "starting torchrun")
            running = start()
        status, silence = _follow(ctx, running, job)
        reason = restarts.hang_of(job) or silence
        if reason is None or read_result(job) is not None or (running.outlives and silence is None):
            break
        if not starts.left:
            raise StageFailedError(f"stage {ctx.name}: {reason}; started {starts.done} times. Log: {log}")
        assert isinstance(job, TrainJob)
        restarts.record(job, starts.done, reason)
        line = f"restart {starts.done} of {starts.allowed - 1}: {reason}"
        with log.open("a") as file:
            file.write(f"cupola: {line}\n")
        ctx.display.say(f"{ctx.name}: {line}")
        running = None
    return status, running


def _follow(ctx: StageContext, running: RunningJob, job: AnyJob) -> tuple[str, str | None]:
    """Show the job's metrics while it runs. Any exception stops the job, which saves first.

    Returns:
        The job's last status; and why it was stopped if no rank responded, else None.
    """
    metrics = job.output / "metrics.jsonl"
    lines, uploads = MetricsTail(metrics), MetricsTail(job.output / EVENTS)
    status, silence, heartbeats = "", None, restarts.Follower(job)
    if ctx.tracker:
        ctx.tracker.follow(ctx.run_id, metrics, ctx.part)
    try:
        ended = False
        while not ended:
            ended = running.wait(LOOK_EVERY) is not None
            if waits := running.waits():
                ctx.display.note(ctx.name, f"waiting for {ctx.run_on}: {waits}")
            for event in lines.new():
                ctx.display.event(ctx.name, event)
                status = event.get("status", "")
            for event in uploads.new():
                if event["event"] == "upload_failed":
                    ctx.display.say(f"{ctx.name}: uploading a checkpoint failed, will retry: {event['reason']}")
            if ctx.lease:
                ctx.lease.check()
            if not ended and (silence := heartbeats.silence()):
                running.stop(GRACE_UNRESPONSIVE)
                ended = True
    except BaseException as error:
        if running.outlives and not ctx.cancelled.is_set():
            if isinstance(error, Exception):
                raise
            raise DetachedError(
                f"stage {ctx.name}: {running.name} goes on. Follow it with cupola attach {ctx.run_id}; end it with "
                f"cupola cancel {ctx.run_id}."
            ) from error
        ctx.display.note(ctx.name, "stopping: saving a checkpoint")
        running.stop(GRACE)
        _forget(ctx, job)
        raise
    return status, silence


def _forget(ctx: StageContext, job: AnyJob) -> None:
    """Forget a job of a cluster once it has ended. Until then, a process that ends for any reason leaves it known."""
    (job.output / handle.FILE).unlink(missing_ok=True)
    if ctx.lease:
        ctx.lease.job = None


def error_of(job: AnyJob) -> CupolaError | None:
    """The user error that ended a job; None if there was none."""
    try:
        error = json.loads((job.output / "error.json").read_text())
    except FileNotFoundError:
        return None
    return BY_NAME.get(error["type"], ConfigError)(error["message"])


def read_result(job: AnyJob) -> JobResult | None:
    """The result of a completed job; None if it has not completed."""
    try:
        result = json.loads((job.output / "result.json").read_text())
    except FileNotFoundError:
        return None
    folder = job.output / result["folder"]
    return JobResult(folder, result["metrics"]) if folder.exists() else None


def tail(log: Path, lines: int = TAIL) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
