"""Checkpoint copies in the store during training: complete or absent, in step with the job's folder, and usable by
another machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola_flows.execution.backup import Backup
from cupola_flows.execution.uploading import upload
from cupola_platform import artifacts
from cupola_platform.errors import StoreError
from cupola_platform.store import LocalStore, Store
from cupola_platform.store.s3 import S3Store

FINGERPRINT = "f" * 64
Eventually = Callable[[Callable[[], bool], float, str], None]


@pytest.fixture(params=["s3", "local"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Store]:
    """A function that opens the shared store from the machine with the given name."""
    if request.param == "local":
        return lambda name: LocalStore(tmp_path / "store" / "artifacts")
    return request.getfixturevalue("bucket")  # type: ignore[no-any-return]


@pytest.fixture
def bucket(s3: Any, tmp_path: Path) -> Callable[[str], Store]:
    def open_(name: str) -> Store:
        url = f"s3://{s3.bucket}/{tmp_path.name}"
        return S3Store(url, cache=LocalStore(tmp_path / name / "cache"), endpoint_url=s3.endpoint_url)

    return open_


def save(job: Path, step: int, content: str = "", files: int = 1) -> Path:
    """Write what a trainer leaves in a job's folder at a step."""
    folder = job / "checkpoints" / f"step_{step:08d}"
    (folder / "state").mkdir(parents=True)
    for number in range(files):
        (folder / "state" / f"rank_{number:05d}.bin").write_text(f"{step} {content} " * 20_000)
    artifacts.seal(folder, kind="checkpoint", config={"step": step})
    with (job / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"event": "step", "time": 1.0, "step": step, "loss": 1.0 / step}) + "\n")
    (job / "samples").mkdir(exist_ok=True)
    (job / "samples" / "dp_00000.jsonl").write_text(f"{step}\n")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def update(backup: Backup) -> list[int]:
    """Upload until there is nothing to do; returns the steps."""
    return [done.step for done in iter(backup.update, None)]


def test_another_machine_resumes_from_the_newest_copy_with_its_accompanying_files(
    machine: Callable[[str], Store], tmp_path: Path
) -> None:
    here, there = tmp_path / "here" / "job", tmp_path / "there" / "job"
    save(here, 5)
    newest = save(here, 10)
    assert update(Backup(machine("here"), FINGERPRINT, here)) == [10, 5]
    said: list[str] = []
    assert Backup(machine("there"), FINGERPRINT, there).restore(said.append) == 10
    assert content(there / "checkpoints" / "step_00000010") == content(newest)
    assert artifacts.verify(there / "checkpoints" / "step_00000010")
    assert {path.name for path in there.rglob("*") if path.is_file()} > {"metrics.jsonl", "dp_00000.jsonl"}
    assert said[0].startswith("resuming from step 10, uploaded to ")
    (there / "metrics.jsonl").open("a").close()  # the job writes there
    assert Backup(machine("there"), FINGERPRINT, there).restore(said.append) is None, "it has a checkpoint now"
    assert Backup(machine("elsewhere"), "e" * 64, tmp_path / "other" / "job").restore(said.append) is None


def test_the_store_keeps_what_the_job_keeps_and_nothing_once_the_stage_is_done(
    machine: Callable[[str], Store], tmp_path: Path
) -> None:
    job = tmp_path / "here" / "job"
    backup = Backup(machine("here"), FINGERPRINT, job)
    for step in (1, 2, 3):
        save(job, step)
        update(backup)
    shutil.rmtree(job / "checkpoints" / "step_00000001")
    assert update(Backup(machine("here"), FINGERPRINT, job)) == []  # a later process reads the store
    assert steps_in(machine("here")) == [2, 3]
    shutil.rmtree(job / "checkpoints" / "step_00000003")  # rolled back to step 2 and repeated
    save(job, 3, "redone")
    assert update(backup) == [3]
    assert steps_in(machine("here")) == [2, 3]
    shutil.rmtree(job / "checkpoints")
    save(job, 9)
    shutil.rmtree(job / "checkpoints")  # nothing to compare with: the copies stay
    assert update(backup) == []
    assert steps_in(machine("here")) == [2, 3]
    shutil.rmtree(job)
    assert Backup(machine("here"), FINGERPRINT, job).restore(lambda text: None) == 3
    assert "redone" in (job / "checkpoints/step_00000003/state/rank_00000.bin").read_text()
    backup.discard()
    assert steps_in(machine("here")) == []
    assert not list((tmp_path / "here").glob("job.*"))


def steps_in(store: Store) -> list[int]:
    section = store.section(f"progress/{FINGERPRINT}-job", Path("unused"))
    return sorted(section.manifest(digest).config["step"] for digest in section.digests() if section.holds(digest))


def test_a_killed_upload_leaves_no_copy_that_seems_complete_and_resumes(
    bucket: Callable[[str], Store], s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setenv("CUPOLA_STORE_URL", f"s3://{s3.bucket}/{tmp_path.name}")
    monkeypatch.setenv("CUPOLA_S3_ENDPOINT_URL", s3.endpoint_url)
    job, there = tmp_path / "here" / "job", tmp_path / "there" / "job"
    save(job, 5)
    update(Backup(bucket("here"), FINGERPRINT, job))
    before = len(keys(s3, tmp_path))
    save(job, 10, files=80)
    command = [sys.executable, "-m", "cupola_flows.execution.uploading", str(job), FINGERPRINT, str(tmp_path / "here")]
    process = subprocess.Popen(command)
    eventually(lambda: len(keys(s3, tmp_path)) > before + 3, 60, "an upload under way")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert before + 3 < len(keys(s3, tmp_path)) < before + 80, "killed halfway"
    assert Backup(bucket("there"), FINGERPRINT, there).restore(print) == 5

    uploaded = {key: head(s3, key)["LastModified"] for key in keys(s3, tmp_path)}
    process = subprocess.Popen(command)
    try:
        eventually(lambda: (job / "uploads.jsonl").exists(), 60, "the upload")
    finally:
        process.kill()
        process.wait()
    event = json.loads((job / "uploads.jsonl").read_text().splitlines()[0])
    assert (event["event"], event["step"]) == ("uploaded", 10)
    assert event["location"].startswith(f"s3://{s3.bucket}/{tmp_path.name}/progress/{FINGERPRINT}-job/")
    assert all(head(s3, key)["LastModified"] == when for key, when in uploaded.items())
    shutil.rmtree(there)
    assert Backup(bucket("there"), FINGERPRINT, there).restore(print) == 10


def keys(s3: Any, folder: Path) -> list[str]:
    listed = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{folder.name}/progress/")
    return [found["Key"] for found in listed.get("Contents", [])]


def head(s3: Any, key: str) -> Any:
    return s3.client.head_object(Bucket=s3.bucket, Key=key)


def test_a_copy_that_was_changed_in_the_store_is_skipped_by_name(
    bucket: Callable[[str], Store], s3: Any, tmp_path: Path
) -> None:
    job, there = tmp_path / "here" / "job", tmp_path / "there" / "job"
    save(job, 5)
    save(job, 10)
    update(Backup(bucket("here"), FINGERPRINT, job))
    (newest,) = [
        key for key in keys(s3, tmp_path) if s3.client.get_object(Bucket=s3.bucket, Key=key)["Body"].read(3) == b"10 "
    ]
    s3.client.put_object(Bucket=s3.bucket, Key=newest, Body=b"torn")
    said: list[str] = []
    assert Backup(bucket("there"), FINGERPRINT, there).restore(said.append) == 5
    assert "skipping a corrupt uploaded checkpoint" in said[0]
    assert "rank_00000.bin was changed on the server" in said[0]


def test_a_store_that_refuses_does_not_stop_training_and_is_reported_once(s3: Any, tmp_path: Path) -> None:
    job = tmp_path / "here" / "job"
    save(job, 5)
    nowhere = S3Store("s3://nowhere", cache=LocalStore(tmp_path / "cache"), endpoint_url=s3.endpoint_url)
    backup = Backup(nowhere, FINGERPRINT, job)
    with pytest.raises(StoreError):
        backup.update()
    failed = ""
    for _ in range(3):
        failed = upload(backup, failed=failed)
    events = [json.loads(line) for line in (job / "uploads.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["upload_failed"]
    assert "does not exist" in events[0]["reason"]
