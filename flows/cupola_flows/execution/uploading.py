"""Uploads checkpoints to the store during training, in a separate low-priority process.

    python -m cupola_flows.execution.uploading JOB_FOLDER FINGERPRINT WORKSPACE

It ends with its parent. Its events are in `JOB_FOLDER/uploads.jsonl`: `uploaded` with step, bytes, seconds and
location, and `upload_failed` with a reason, once per reason.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cupola_flows.execution.backup import Backup, checkpoints
from cupola_flows.execution.context import StageContext
from cupola_flows.servers.processes import spawn
from cupola_platform.errors import CupolaError, StoreError
from cupola_platform.launch.launcher import is_unshared
from cupola_platform.settings import load_settings
from cupola_platform.store import open_store
from cupola_trainer.config import TrainJob
from cupola_trainer.reporting.metrics import append, read_metrics

EVENTS = "uploads.jsonl"
LOOK_EVERY = 0.5
"""Seconds between checks for new checkpoints."""
RETRY_EVERY = 5.0
"""The same after a failed upload."""
NICE = 10


def backup_of(ctx: StageContext, job: TrainJob) -> Backup:
    """The checkpoint copies of a stage's job in the workspace's store."""
    return Backup(ctx.workspace.store, ctx.fingerprint, job.output)


def discard(ctx: StageContext, job: TrainJob) -> None:
    """Remove the copies of a job whose artifact is published; if the store refuses, print that they stay."""
    try:
        backup_of(ctx, job).discard()
    except StoreError as error:
        ctx.display.say(f"{ctx.name}: the uploaded checkpoints could not be removed from the store: {error}")


@contextmanager
def uploaded(ctx: StageContext, job: object, log: Path) -> Iterator[None]:
    """Upload the job's checkpoints while the block runs, if the job asks for it and its nodes do not do it themselves.

    If the job was stopped or crashed, waits up to `checkpoint.upload_wait` for its last checkpoint. An upload that has
    not finished by then is resumed at the next start.
    """
    unshared = is_unshared(ctx.workspace.settings, ctx.run_on)
    if not isinstance(job, TrainJob) or not job.checkpoint.upload or unshared:
        yield
        return
    (job.output / EVENTS).unlink(missing_ok=True)
    command = [sys.executable, "-m", __name__, str(job.output), ctx.fingerprint, str(ctx.workspace.root)]
    process = spawn(command, log, {}, ends_with_us=True)
    try:
        yield
    finally:
        until = time.monotonic() + job.checkpoint.upload_wait
        while not _all_there(job) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        process.kill()
        process.wait()


def _all_there(job: TrainJob) -> bool:
    """Whether the job is complete or its newest checkpoint is uploaded."""
    if (job.output / "result.json").exists():
        return True
    newest = next(iter(checkpoints(job.output)), None)
    return newest is None or any(event.get("name") == newest for event in read_metrics(job.output / EVENTS))


def upload(backup: Backup, *, failed: str = "") -> str:
    """Upload once. Returns the error, or an empty string. `failed` is what the previous call returned."""
    events = backup.job / EVENTS
    try:
        done = backup.update()
    except (CupolaError, OSError) as error:
        if str(error) != failed:
            append(events, "upload_failed", reason=str(error))
        return str(error)
    if done:
        append(
            events, "uploaded", step=done.step, name=done.name, bytes=done.bytes, seconds=done.seconds,
            location=done.location,
        )  # fmt: skip
    return ""


def main(job: Path, fingerprint: str, workspace: Path) -> None:
    os.nice(NICE)
    backup = Backup(open_store(load_settings(workspace)), fingerprint, job)
    failed = ""
    while True:
        failed = upload(backup, failed=failed)
        time.sleep(RETRY_EVERY if failed else LOOK_EVERY)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
